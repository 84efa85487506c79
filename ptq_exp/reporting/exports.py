"""The table of exported files: for the terminal, as Markdown, and as cells for the HTML report."""

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from ptq_exp.reporting.table import JOB, Cells, broken
from ptq_exp.reporting.tables.markdown import markdown_cells
from ptq_exp.results.exports import ExportResult
from ptq_exp.results.series import Series

FILE = "file"
HEADINGS = [FILE, "agreement %", "top-1 %", "kB", "images/s at 1 / 64", "× float at 1 / 64"]

NARROW = [FILE, "agree-\nment %", "top-1 %", "kB", "images/s at 1 / 64\nand × float"]  # for the terminal

Exports = dict[str, list[ExportResult]]  # by the label of a series


def exports_of_series(series: Series) -> Exports:
    """The exports of every series, in the order of the results. Empty without exports."""
    found = {label: [export for row in rows for export in row.exports] for label, rows in series.items()}
    return {label: exports for label, exports in found.items() if exports}


def export_cells(exports: Exports) -> Cells | None:
    """One line per file and runtime, or None without exports."""
    named = [JOB] if list(exports) != [""] else []
    lines = [[*([label] if named else []), *_line(export)] for label, found in exports.items() for export in found]
    return Cells([*named, *HEADINGS], lines) if lines else None


def notes(exports: Exports) -> list[str]:
    """What was not verified, or failed, one sentence each."""
    return list(dict.fromkeys(_note(export) for found in exports.values() for export in found if export.note))


def integer_sentences(series: Series) -> list[str]:
    """The result of the integer reference for each result that has one."""
    found = [(label, row) for label, rows in series.items() for row in rows if row.integers]
    return [
        f"{f'{label}, ' if label else ''}quant.bits={row.bits}: {row.integers.sentence()}"
        for label, row in found if row.integers
    ]  # fmt: skip


def _line(export: ExportResult) -> list[str]:
    name = export.file or export.format
    return [
        f"{name}\n{export.runtime}" if export.runtime else name,
        _number(export.agreement, ".2f"),
        _number(export.top1, ".2f"),
        _number(None if export.size_bytes is None else export.size_bytes / 1000, ".1f"),
        _pair(export.speed_1, export.speed_64, ".0f"),
        _pair(_ratio(export.speed_1, export.float_speed_1), _ratio(export.speed_64, export.float_speed_64), ".1f"),
    ]


def _note(export: ExportResult) -> str:
    return f"{'FAILED ' if export.failed else ''}{export.place}: {export.note}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _pair(first: float | None, second: float | None, form: str) -> str:
    return "-" if first is None or second is None else f"{first:{form}} / {second:{form}}"


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


class ExportTable:
    """The table for the terminal, and the notes below it."""

    def __init__(self, exports: Exports):
        self.exports = exports

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for label, found in self.exports.items():
            if label:
                yield Text(broken(label, options.max_width))
            table = Table()
            for heading in NARROW:
                left = heading == FILE
                table.add_column(heading, justify="left" if left else "right", no_wrap=True)
            for export in found:
                *cells, speeds, ratios = _line(export)
                table.add_row(*cells, f"{speeds}\n× {ratios}" if export.speed_1 else speeds)
            yield table
        yield from map(Text, notes(self.exports))


def export_markdown(exports: Exports) -> str:
    """The table in Markdown, to be appended to the page of a run. Empty without exports."""
    cells = export_cells(exports)
    if cells is None:
        return ""

    cells = Cells(cells.headings, [[cell.replace("\n", ", ") for cell in line] for line in cells.lines])
    return "\n".join(["\n\n**Exports**\n", markdown_cells(cells), "", *notes(exports)])
