"""Writes the report to a job's artifacts or a sweep's folder."""

from pathlib import Path

from ptq_exp.base.paths import from_here
from ptq_exp.base.text import write_text
from ptq_exp.reporting import JobStart, Reporter
from ptq_exp.reporting.html import REPORT_FILE
from ptq_exp.reporting.html.content import Results, report, sweep_results
from ptq_exp.reporting.html.pictures import images
from ptq_exp.reporting.mlflow.place import address
from ptq_exp.results.records import JobRecord, SweepRecord


class HtmlReport(Reporter):
    """Writes `report.html`. A job in a sweep has no report of its own; the sweep writes one."""

    alone = True
    file: Path | None = None

    def job_begins(self, start: JobStart) -> None:
        self.alone = start.alone

    def job(self, record: JobRecord) -> None:
        """Write the report of a single job to its artifacts."""
        if self.alone:
            self.file = record.artifacts / REPORT_FILE
            write_text(self.file, report(Results.of_job(record, address(record.folder)), {}))

    def sweep(self, record: SweepRecord) -> None:
        """Write the report of a sweep to the folder of the figures over all jobs."""
        record.figures.mkdir(exist_ok=True)
        self.file = record.figures / REPORT_FILE
        if record.jobs or record.searches:
            write_text(self.file, report(sweep_results(record, address(record.folder)), images(record.figures)))

    def where(self) -> list[str]:
        """The path of the report."""
        return [f"Report: {from_here(self.file)}"] if self.file else []
