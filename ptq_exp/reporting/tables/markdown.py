"""The result table as Markdown: the note on a run's page in MLflow, and `table.md`."""

from ptq_exp.reporting.table import Cells, table_cells
from ptq_exp.reporting.tables import TableContent
from ptq_exp.results.comparison import against_best, sentences
from ptq_exp.results.records import JobRecord, SweepRecord
from ptq_exp.results.series import coverage, rows_of, seed_note, width


def markdown(content: TableContent) -> str:
    """The result table with its title, and what ± means."""
    table = markdown_cells(table_cells(content.series, content.failures, unfold=content.unfold))
    return "\n\n".join(filter(None, [f"**{content.title}**", table, seed_note(content.rows)]))


def markdown_cells(cells: Cells) -> str:
    """Any table."""
    lines = (cells.headings, ["---"] * len(cells.headings), *cells.lines)
    escaped = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def sweep_note(record: SweepRecord) -> str:
    """The table of a sweep, which methods differ significantly, and the reasons of failures."""
    content = TableContent.of_sweep(record)
    compared = sentences(against_best(rows_of(content.series)))
    return "\n\n".join([markdown(content), *compared, *map(str, content.failures)])


def job_note(record: JobRecord) -> str:
    """The table of a job, its diagnoses, and what it covers."""
    diagnoses = "\n\n".join(f"{width(result)}. {result.diagnosis}" for result in record.results)
    return "\n\n".join([markdown(TableContent.of_job(record)), diagnoses, *coverage(record.results)])
