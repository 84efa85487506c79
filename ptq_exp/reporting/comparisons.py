"""The table of paired comparisons: for the terminal, as cells for the report and Markdown, and as LaTeX."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from ptq_exp.reporting.table import BITS, Cells, broken
from ptq_exp.reporting.tables.latex import escaped, line, tabular
from ptq_exp.results.comparison import NOT_TESTED, WHY_NOT_TESTED, Comparison, by_width, side_by_side
from ptq_exp.results.records import JobRecord
from ptq_exp.results.series import NO_SETTINGS, as_series, labels, rows_of

METHOD, OTHER, DIFFERENCE, INTERVAL, VERDICT = "method", "compared with", "difference", "95 % CI", "verdict"
HEADINGS = [BITS, METHOD, OTHER, DIFFERENCE, INTERVAL, VERDICT]
WORDS = (METHOD, OTHER, VERDICT)
NARROW_LABEL = 16  # characters; a label is broken to this width at most


@dataclass(frozen=True)
class Compared:
    """The methods of two sweeps or jobs, named A and B, at the widths that both have."""

    pairs: list[Comparison]
    nothing: str  # why there is no pair


def compared(first: Sequence[JobRecord], second: Sequence[JobRecord], unfold: bool = False) -> Compared:
    """Compare two sweeps or jobs. With `unfold`, each seed is compared on its own.

    Labels name what differs among the jobs of both, so that the same setting has the same label in both.
    """
    names = labels([*first, *second], ignored=NO_SETTINGS)
    ours = rows_of(as_series(first, names[: len(first)]), unfold)
    theirs = rows_of(as_series(second, names[len(first) :]), unfold)

    def name(side: str, label: str, jobs: Sequence[JobRecord]) -> str:
        return f"{side}: {label or ' '.join(jobs[0].method)}"

    pairs = [
        replace(found, first=name("A", found.first, first), second=name("B", found.second, second))
        for found in side_by_side(ours, theirs)
    ]
    widths = [", ".join(map(str, by_width(rows))) for rows in (ours, theirs)]
    nothing = f"A was measured at {widths[0]} stored bits per weight and B at {widths[1]}. No width is in both."
    return Compared(pairs, nothing)


def comparison_cells(comparisons: Sequence[Comparison]) -> Cells | None:
    """One line per pair, or None if there is none."""
    return Cells(HEADINGS, [_cells(found) for found in comparisons]) if comparisons else None


def comparison_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """Why something was not tested."""
    return [WHY_NOT_TESTED] if any(found.verdict == NOT_TESTED for found in comparisons) else []


def comparison_latex(title: str, comparisons: Sequence[Comparison]) -> str:
    """The same table as LaTeX."""
    headings = [
        line(["bits per", METHOD, OTHER, DIFFERENCE, r"95\,\% CI", VERDICT]),
        line(["weight", "", "", "(points)", "(points)", ""]),
    ]
    body = []
    for found in comparisons:
        width, first, second, points, interval, verdict = _cells(found)
        shown = f"${found.tested.ci_low:+.2f}$ to ${found.tested.ci_high:+.2f}$" if found.tested else interval
        body.append(line([width, escaped(first), escaped(second), f"${points}$", shown, verdict]))
    comments = [title, r"Needs \usepackage{booktabs}. The difference is top-1 of the method minus that of the other."]
    return tabular([*comments, *comparison_notes(comparisons)], "rllrrl", headings, body)


def _cells(found: Comparison) -> list[str]:
    interval = f"{found.tested.ci_low:+.2f} – {found.tested.ci_high:+.2f}" if found.tested else ""
    return [str(found.width), found.first, found.second, f"{found.points:+.2f}", interval, found.verdict]


@dataclass(frozen=True)
class ComparisonTable:
    """The table for the terminal. Labels are broken into as many lines as the width requires."""

    compared: Compared

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = comparison_cells(self.compared.pairs)
        if cells is None:
            yield Text(broken(self.compared.nothing, options.max_width))
            return
        narrow = replace(cells, headings=["bits/\nweight", METHOD, OTHER, "differ-\nence", INTERVAL, VERDICT])
        narrow = replace(narrow, lines=[[*each[:5], each[5].replace(" ", "\n")] for each in cells.lines])
        others = sum(narrow.widths) - narrow.widths[1] - narrow.widths[2] + 3 * len(HEADINGS) + 1
        room = max(NARROW_LABEL, (options.max_width - others) // 2)
        table = Table()
        for heading, key in zip(narrow.headings, HEADINGS, strict=True):
            table.add_column(heading, justify="left" if key in WORDS else "right", no_wrap=True)
        for width, first, second, *rest in narrow.lines:
            table.add_row(width, broken(first, room), broken(second, room), *rest)
        yield table
        yield from (Text(broken(note, options.max_width)) for note in comparison_notes(self.compared.pairs))
