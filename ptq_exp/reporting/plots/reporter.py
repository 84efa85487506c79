"""Figures as an output: among a job's artifacts and in a sweep's folder."""

from ptq_exp.reporting import Reporter
from ptq_exp.reporting.plots.figures import draw_job, draw_sweep
from ptq_exp.results.records import JobRecord, SweepRecord


class Plots(Reporter):
    """Draws the figures over bit widths and jobs. Those of one bit width need its network: a job draws them itself."""

    def job(self, record: JobRecord) -> None:
        """The figures over all bit widths of a job."""
        draw_job(record)

    def sweep(self, record: SweepRecord) -> None:
        """The figures over all jobs of a sweep."""
        record.figures.mkdir(exist_ok=True)
        draw_sweep(record)
