"""A job or a sweep in Markdown: `table.md`, the note on a run's page in MLflow, the text in TensorBoard."""

from ptq_exp.reporting.search import answer_cells, conclusions, explanation, trial_cells
from ptq_exp.reporting.tables import TableContent
from ptq_exp.reporting.tables.markdown import markdown, markdown_cells
from ptq_exp.results.comparison import against_best, sentences
from ptq_exp.results.records import JobRecord, SweepRecord
from ptq_exp.results.search import named_sentence, sentence
from ptq_exp.results.series import coverage, rows_of, width


def job_note(record: JobRecord) -> str:
    """The table of a job, its diagnoses, and what it covers."""
    diagnoses = "\n\n".join(f"{width(result)}. {result.diagnosis}" for result in record.results)
    return "\n\n".join([markdown(TableContent.of_job(record)), diagnoses, *coverage(record.results)])


def sweep_note(record: SweepRecord) -> str:
    """The answer and the trials of a search, the answers of several searches, or the table of any other sweep, which
    methods differ significantly, and the reasons of failures."""
    if search := record.search:
        table = markdown_cells(trial_cells(search))
        parts = [f"**{sentence(search)}**", search.title, table, explanation(search), *conclusions(search)]
    elif record.searches:
        parts = [markdown_cells(answer_cells(record.searches)), *map(named_sentence, record.searches)]
    else:
        content = TableContent.of_sweep(record)
        compared = sentences(against_best(rows_of(content.series)))
        parts = [markdown(content), *compared, *map(str, content.failures)]
    return "\n\n".join(parts)
