"""The result table, in the terminal and on the MLflow page. A row is the dictionary that a job writes for one bit width."""

from typing import Any

from rich.table import Table

Row = dict[str, Any]

HEADINGS = ["bits", "top-1 %", "95 % interval", "drop", "agreement %", "size"]


def as_series(jobs: list[dict[str, Any]]) -> dict[str, list[Row]]:
    """The rows by what sets their jobs apart besides the bit width, written as on the command line.

    A sweep over `quant.bits` alone is one series called ''.
    """
    overrides = [job["overrides"].split(" ") for job in jobs]
    shared = set.intersection(*map(set, overrides)) if overrides else set()
    series: dict[str, list[Row]] = {}
    for job, words in zip(jobs, overrides, strict=True):
        label = " ".join(word for word in words if word not in shared)
        series.setdefault(label, []).extend(job["rows"])
    return series


def cells(row: Row) -> list[str]:
    """One row as text, under `HEADINGS`."""
    width = str(row["bits"]) if row["act_bits"] is None else f"w{row['bits']} a{row['act_bits']}"
    interval = f"{row['top1_ci_low']:.2f} – {row['top1_ci_high']:.2f}"
    size = f"{row['size_bytes'] / 1000:.1f} kB"
    return [width, f"{row['top1']:.2f}", interval, f"{row['top1_drop']:+.2f}", f"{row['agreement']:.2f}", size]


def terminal_table(series: dict[str, list[Row]], title: str) -> Table:
    """The result table for the terminal, the float network first."""
    table = Table(title=title, title_justify="left", title_style="bold")
    named = list(series) != [""]
    for heading in (["job"] if named else []) + HEADINGS:
        table.add_column(heading, justify="left" if heading == "job" else "right")
    for line in _lines(series, named):
        table.add_row(*line)
    return table


def markdown_table(series: dict[str, list[Row]], title: str) -> str:
    """The same table in Markdown, for the page of a run."""
    named = list(series) != [""]
    headings = (["job"] if named else []) + HEADINGS
    lines = [headings, ["---"] * len(headings), *_lines(series, named)]
    return f"**{title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _lines(series: dict[str, list[Row]], named: bool) -> list[list[str]]:
    lines = []
    for label, rows in series.items():
        first = rows[0]
        interval = f"{first['top1_float_ci_low']:.2f} – {first['top1_float_ci_high']:.2f}"
        size = f"{first['size_bytes_float'] / 1000:.1f} kB"
        job = [label] if named else []
        lines.append([*job, "float", f"{first['top1_float']:.2f}", interval, "", "", size])
        lines += [[*job, *cells(row)] for row in sorted(rows, key=lambda row: row["bits"])]
    return lines
