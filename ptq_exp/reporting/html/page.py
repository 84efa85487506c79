"""A page of HTML in one file: no script, no font and no image from elsewhere. Everything passed in is escaped."""

import base64
from collections.abc import Iterable
from html import escape

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #57606a; --line: #d0d7de; --back: #ffffff; --band: #f6f8fa;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --soft: #9aa5b1; --line: #3d444d; --back: #0f1419;
  --band: #171d24; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 90rem; padding: 1.5rem 1.25rem 4rem; color: var(--text); background: var(--back);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 60rem; }
.soft { color: var(--soft); }
.answer { font-size: 1.1rem; border-left: 4px solid var(--accent); padding-left: .75rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; border-bottom-width: 2px; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
tbody tr:nth-child(even) { background: var(--band); }
td.word { white-space: nowrap; }
td.wide { overflow-wrap: anywhere; min-width: 8rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(32rem, 100%), 1fr)); gap: 1rem;
  align-items: start; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 2rem; }
.sides > div { min-width: 0; }
.sides table { font-size: .78rem; }
.sides th, .sides td { padding: .2rem .4rem; }
.sides th, .sides td.word { white-space: normal; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; background: #fff; }
figure img { display: block; width: 100%; height: auto; }
figcaption { padding: .35rem .7rem; font-size: .85rem; color: var(--soft); background: var(--band); }
pre { background: var(--band); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .9rem; }
@media print { body { max-width: none; padding: 0; font-size: .8rem; color: #000; background: #fff; }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .figures { grid-template-columns: 1fr 1fr; } .scroll { overflow: visible; } }
"""


def document(title: str, *parts: str) -> str:
    """The whole page, its parts HTML already."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{escape(title)}</title><style>{STYLE}</style></head>\n'
        f"<body>\n<h1>{escape(title)}</h1>\n" + "\n".join(filter(None, parts)) + "\n</body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what is below it; nothing where there is nothing."""
    content = "\n".join(filter(None, parts))
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def heading(text: str) -> str:
    """A smaller heading."""
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; `kind` is soft or answer."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(headings: list[str], lines: Iterable[list[str]], words: Iterable[str] = (), wide: Iterable[str] = ()) -> str:
    """A table. The columns in `words` are text, those in `wide` text that may be broken, the others numbers."""
    kinds = ["word" if heading in words else "wide" if heading in wide else "number" for heading in headings]
    head = "".join(f'<th class="{kind}">{escape(text)}</th>' for kind, text in zip(kinds, headings, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f'<td class="{kind}">{escape(str(cell))}</td>' for kind, cell in zip(kinds, line, strict=True))
        + "</tr>" for line in lines
    )  # fmt: skip
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def figures(images: dict[str, bytes]) -> str:
    """PNG images by their captions, side by side where there is room."""
    if not images:
        return ""
    shown = "\n".join(
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, png in images.items()
    )
    return f'<div class="figures">\n{shown}\n</div>'


def sides(left: str, right: str) -> str:
    """Two parts side by side where there is room."""
    return f'<div class="sides"><div>\n{left}\n</div><div>\n{right}\n</div></div>'


def code(text: str) -> str:
    """Text as typed."""
    return f"<pre><code>{escape(text)}</code></pre>"
