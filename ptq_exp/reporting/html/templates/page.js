"use strict";
// A table that is wider than the page says so.
const mark = () => document.querySelectorAll(".scroll").forEach(part =>
  part.classList.toggle("more", part.scrollWidth > part.clientWidth + 1));
addEventListener("load", mark);
addEventListener("resize", mark);
document.querySelectorAll("details").forEach(part => part.addEventListener("toggle", mark));
// A link to a folded section unfolds it.
const unfold = () => {
  const part = document.getElementById(location.hash.slice(1));
  if (part instanceof HTMLDetailsElement) part.open = true;
};
addEventListener("hashchange", unfold);
unfold();
// A click on a heading sorts by its column, a second click in the opposite order.
const value = cell => cell.textContent === "∞" ? Infinity : Number(cell.textContent.replaceAll(",", ""));
document.querySelectorAll("table.sort th button").forEach(button => button.addEventListener("click", () => {
  const heading = button.parentElement, body = heading.closest("table").tBodies[0], column = heading.cellIndex;
  const sign = heading.ariaSort === "ascending" ? -1 : 1;
  const rows = [...body.rows], numbers = rows.every(row => !Number.isNaN(value(row.cells[column])));
  const order = (a, b) => numbers ? value(a) - value(b) || 0 : a.textContent.localeCompare(b.textContent, "en", {numeric: true});
  rows.sort((a, b) => sign * order(a.cells[column], b.cells[column]));
  for (const other of heading.parentElement.cells) other.ariaSort = "none";
  heading.ariaSort = sign > 0 ? "ascending" : "descending";
  body.append(...rows);
}));
