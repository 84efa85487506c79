"""The figures as an output: in a job's artifacts and in a sweep's folder."""

from ptq_exp.reporting import Reporter
from ptq_exp.reporting.plots.overall import draw_job, draw_sweep
from ptq_exp.results.records import JobRecord, SweepRecord


class Plots(Reporter):
    """Draws the figures over bit widths and jobs. A job draws those of one bit width, which need its network."""

    def job(self, record: JobRecord) -> None:
        """Draw the figures over all bit widths of a job."""
        draw_job(record)

    def sweep(self, record: SweepRecord) -> None:
        """Draw the figures over all jobs of a sweep."""
        record.figures.mkdir(exist_ok=True)
        draw_sweep(record)
