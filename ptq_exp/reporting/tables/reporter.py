"""The tables as an output: `table.csv`, `table.md` and `table.tex` beside the report."""

from pathlib import Path

from ptq_exp.base.text import write_text
from ptq_exp.reporting import JobStart, Reporter
from ptq_exp.reporting.notes import job_note, sweep_note
from ptq_exp.reporting.tables import TableContent
from ptq_exp.reporting.tables.delimited import delimited
from ptq_exp.reporting.tables.latex import latex
from ptq_exp.results.records import JobRecord, SweepRecord

NAME = "table"


class Tables(Reporter):
    """Writes the result table in every format. A job in a sweep has no table of its own; the sweep writes one."""

    alone = True

    def job_begins(self, start: JobStart) -> None:
        self.alone = start.alone

    def job(self, record: JobRecord) -> None:
        """Write the tables of a single job to its artifacts."""
        if self.alone:
            _write(record.artifacts, TableContent.of_job(record), job_note(record))

    def sweep(self, record: SweepRecord) -> None:
        """Write the tables of a sweep to the folder of its report."""
        record.figures.mkdir(exist_ok=True)
        _write(record.figures, TableContent.of_sweep(record), sweep_note(record))


def _write(folder: Path, content: TableContent, note: str) -> None:
    write_text(folder / f"{NAME}.md", note)
    write_text(folder / f"{NAME}.csv", delimited(content))
    if content.series:
        write_text(folder / f"{NAME}.tex", latex(content))
