"""The result table: for the terminal (as wide as it allows), and as cells for the report and for Markdown.

No number is ever cut. If a terminal is too narrow for the complete table, these parts are dropped in this order until
the rest fits:

1. the separate columns of the intervals (they move below their values, and headings become shorter),
2. the agreement with the float network,
3. the size of the float network,
4. the words of the verdict (replaced by a mark, which is explained below the table),
5. the 95 % CI of top-1 (the CI of the drop is narrower and more informative),
6. the size,
7. the column with the names of the series (each series then has its own table).

The first four are also dropped if a series' name would otherwise break within a word or into more than two lines.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from ptq_exp.results.records import Failure
from ptq_exp.results.series import (
    HIGHER,
    LOWER,
    NOT_DISTINGUISHABLE,
    Row,
    Rows,
    Series,
    nominal_width,
    rows_of,
    seed_note,
    stored_width,
    verdict,
)

JOB, BITS, NOMINAL, VERDICT, AGREEMENT, SIZE = (
    "job",
    "bits/weight",
    "quant.bits",
    "against float",
    "agreement %",
    "size",
)
TOP1, TOP1_CI, DROP, DROP_CI = "top-1 %", "95 % CI", "drop", "95 % CI of the drop"
MARKS = {NOT_DISTINGUISHABLE: "≈", LOWER: "<", HIGHER: ">"}
EXPLAINED = "≈ not distinguishable from the float network, < lower, > higher"
LABEL_LINES = 2  # another column is dropped before a series' name takes more lines
BREAK = re.compile(r"(?<=[ =,_])|(?=\.[A-Za-z])")  # positions for line breaks in a label, never within a number


@dataclass(frozen=True)
class Layout:
    """The parts that a table shows."""

    intervals: bool = True  # in separate columns; else below their values
    agreement: bool = True
    float_size: bool = True
    words: bool = True  # the verdict in words; else a mark
    top1_interval: bool = True
    size: bool = True
    job: bool = True


GIVEN_UP = ("intervals", "agreement", "float_size", "words", "top1_interval", "size", "job")
LAYOUTS = list(accumulate(GIVEN_UP, lambda layout, name: replace(layout, **{name: False}), initial=Layout()))


@dataclass(frozen=True)
class Cells:
    """Headings and lines of text. A cell with several lines contains line breaks."""

    headings: list[str]
    lines: list[list[str]]

    @property
    def widths(self) -> list[int]:
        """The width in characters that each column of the table needs."""
        return [
            max(cell_len(part) for text in column for part in text.split("\n"))
            for column in zip(self.headings, *self.lines, strict=True)
        ]


def table_cells(
    series: Series, failures: Sequence[Failure], layout: Layout = LAYOUTS[0], unfold: bool = False
) -> Cells:
    """The table, with a column of jobs if there are several series, each float network once, and failed jobs last.

    Jobs that differ only in their seeds share a line with their mean ± sample standard deviation, unless `unfold`.
    """
    return _cells_of(rows_of(series, unfold), failures, layout)


def _cells_of(groups: Rows, failures: Sequence[Failure], layout: Layout) -> Cells:
    nominal = any(nominal_width(row.mean) for rows in groups.values() for row in rows)
    columns = ({JOB: JOB} if layout.job and _named(groups) else {}) | _columns(layout, nominal)
    lines, shown = [], None
    for label, rows in groups.items():
        baseline = _float_values(rows[0], layout)
        if baseline != shown:
            shown = baseline
            lines.append({JOB: label} | baseline)
        lines += [{JOB: label} | _values(row, layout, nominal) for row in rows]
    for failure in failures:
        lines.append({JOB: failure.overrides, TOP1: "failed"} | _widths("", failure.bits, layout, nominal))
    return Cells(list(columns.values()), [[line.get(key, "") for key in columns] for line in lines])


def _named(groups: Rows) -> bool:
    return bool(groups) and list(groups) != [""]


def with_std(row: Row, name: str, form: str) -> str:
    """A number of a line: `97.80`, or `97.80 ± 0.12` if there are several seeds."""
    text, std = f"{getattr(row.mean, name):{form}}", row.std(name)
    return text if std is None else f"{text} ± {std:.2f}"


def _widths(stored: str, given: str, layout: Layout, nominal: bool) -> dict[str, str]:
    """Stored bits, and also `quant.bits` if they differ anywhere in the table."""
    if not nominal:
        return {BITS: stored or given}
    return {BITS: stored, NOMINAL: given} if layout.intervals else {BITS: f"{stored}\n({given})".strip()}


def _columns(layout: Layout, nominal: bool) -> dict[str, str]:
    """The columns of a layout and their headings."""
    if layout.intervals:
        shown = [BITS, *([NOMINAL] if nominal else []), TOP1, TOP1_CI, DROP, DROP_CI, VERDICT, AGREEMENT, SIZE]
        return {key: key for key in shown}
    columns = {
        BITS: "bits/\nweight" + ("\n(quant.\nbits)" if nominal else ""),
        TOP1: f"{TOP1}\n{TOP1_CI}" if layout.top1_interval else TOP1,
        DROP: f"{DROP}\n{TOP1_CI}",
        VERDICT: "against\nfloat" if layout.words else "vs\nfloat",
    }
    columns |= {AGREEMENT: "agree-\nment %"} if layout.agreement else {}
    return columns | ({SIZE: "size\nkB"} if layout.size else {})


def _values(line: Row, layout: Layout, nominal: bool) -> dict[str, str]:
    row = line.mean
    stored = stored_width(row) if row.act_bits is None else f"w{stored_width(row)} a{row.act_bits}"
    said, kilobytes = verdict(row), f"{row.size_bytes / 1000:.1f}"
    values = _widths(stored, str(row.bits), layout, nominal) | {
        TOP1: with_std(line, "top1", ".2f"), TOP1_CI: f"{row.top1_ci_low:.2f} – {row.top1_ci_high:.2f}",
        DROP: with_std(line, "top1_drop", "+.2f"),
        DROP_CI: f"{row.top1_drop_ci_low:+.2f} – {row.top1_drop_ci_high:+.2f}",
        VERDICT: said if layout.words else MARKS[said], AGREEMENT: f"{row.agreement:.2f}",
        SIZE: f"{kilobytes} kB" if layout.intervals else kilobytes,
    }  # fmt: skip
    if layout.intervals:
        return values
    if layout.words:
        values[VERDICT] = said.replace(" ", "\n")
    return _stacked(values, layout) | {DROP: f"{values[DROP]}\n{values[DROP_CI]}"}


def _stacked(values: dict[str, str], layout: Layout) -> dict[str, str]:
    """The values with the 95 % CI of top-1 below top-1."""
    return values | ({TOP1: f"{values[TOP1]}\n{values[TOP1_CI]}"} if layout.top1_interval else {})


def _float_values(line: Row, layout: Layout) -> dict[str, str]:
    row = line.mean
    kilobytes = f"{row.size_bytes_float / 1000:.1f}"
    values = {
        BITS: "float",
        TOP1: with_std(line, "top1_float", ".2f") if line.std("top1_float") else f"{row.top1_float:.2f}",
        TOP1_CI: f"{row.top1_float_ci_low:.2f} – {row.top1_float_ci_high:.2f}",
        SIZE: f"{kilobytes} kB" if layout.intervals else kilobytes,
    }  # fmt: skip
    if not layout.float_size:
        del values[SIZE]
    return values if layout.intervals else _stacked(values, layout)


def broken(label: str, width: int) -> str:
    """The label in lines of at most `width` characters. A longer part that must not be broken stays whole."""
    lines = [""]
    for word in label.split(" "):
        for number, part in enumerate([word] if cell_len(word) <= width else BREAK.split(word)):
            blank = " " if number == 0 and lines[-1] else ""
            if lines[-1] and cell_len(lines[-1] + blank + part) > width:
                lines.append("")
                blank = ""
            lines[-1] += blank + part
    return "\n".join(lines)


def longest_part(labels: list[str]) -> int:
    """The minimum width in characters that the labels need."""
    return max((cell_len(part.strip()) for label in labels for part in BREAK.split(label)), default=0)


@dataclass(frozen=True)
class ResultTable:
    """The result table for the terminal, in the fullest layout that fits."""

    series: Series
    title: str
    failures: Sequence[Failure] = ()
    unfold: bool = False  # a line for each seed

    @functools.cached_property
    def groups(self) -> Rows:
        """The lines by series."""
        return rows_of(self.series, self.unfold)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        comfortable = [layout for layout in LAYOUTS if layout.top1_interval and self._fits(layout, width, LABEL_LINES)]
        layout = next(iter(comfortable or [layout for layout in LAYOUTS if self._fits(layout, width)]), LAYOUTS[-1])
        yield Text(broken(self.title, width), style="bold")
        if layout.job or not _named(self.groups):
            yield rich_table(self._cells(layout, width))
        else:
            for label, rows in self.groups.items():
                yield Text(broken(label, width))
                yield rich_table(_cells_of({"": rows}, [], layout))
            for failure in self.failures:
                yield Text(broken(f"{failure.overrides}, quant.bits={failure.bits}: failed", width))
        if not layout.words:
            yield Text(broken(EXPLAINED, width))
        if note := seed_note(self.groups):
            yield Text(broken(note, width))

    def _labels(self) -> list[str]:
        return [*self.groups, *(failure.overrides for failure in self.failures)]

    def _cells(self, layout: Layout, width: int) -> Cells:
        """The cells, with labels broken to the width that the other columns leave."""
        cells = _cells_of(self.groups, self.failures, layout)
        if layout.job and _named(self.groups):
            room = max(width - _outer_width(cells.widths[1:], 1), longest_part(self._labels()))
            return replace(cells, lines=[[broken(line[0], room), *line[1:]] for line in cells.lines])
        return cells

    def _fits(self, layout: Layout, width: int, label_lines: int | None = None) -> bool:
        """Whether the table fits `width` and, if `label_lines` is given, labels fit so many lines of whole words."""
        cells = self._cells(layout, width)
        if label_lines and layout.job and _named(self.groups):
            shown = {line[0] for line in cells.lines}
            whole = {label.replace("\n", " ") for label in shown} <= set(self._labels())
            if not whole or any(label.count("\n") >= label_lines for label in shown):
                return False
        return _outer_width(cells.widths) <= width


def _outer_width(widths: list[int], further: int = 0) -> int:
    """The table's width, with padding and borders. `further` counts additional columns."""
    return sum(widths) + 3 * (len(widths) + further) + 1


def rich_table(cells: Cells, words: Sequence[str] = (JOB, VERDICT)) -> Table:
    """The table for the terminal. Columns with a heading in `words` contain text, the others numbers."""
    table = Table()
    for heading, room in zip(cells.headings, cells.widths, strict=True):
        text = heading.replace("\n", " ") in words
        table.add_column(heading, justify="left" if text else "right", no_wrap=True, min_width=room)
    for line in cells.lines:
        table.add_row(*line)
    return table
