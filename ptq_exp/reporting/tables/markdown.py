"""Tables in Markdown."""

from ptq_exp.reporting.table import Cells, table_cells
from ptq_exp.reporting.tables import TableContent
from ptq_exp.results.series import seed_note


def markdown(content: TableContent) -> str:
    """The result table with its title, and what ± means."""
    table = markdown_cells(table_cells(content.series, content.failures, unfold=content.unfold))
    return "\n\n".join(filter(None, [f"**{content.title}**", table, seed_note(content.rows)]))


def markdown_cells(cells: Cells) -> str:
    """Any table."""
    lines = (cells.headings, ["---"] * len(cells.headings), *cells.lines)
    escaped = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)
