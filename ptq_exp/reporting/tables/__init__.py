"""The result table as files for papers and programs: LaTeX, CSV and Markdown.

Every sweep, and every job outside of a sweep, leaves all three. `python -m ptq_exp.report --format` writes one of them
from MLflow alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ptq_exp.results.records import Failure, JobRecord, SweepRecord
from ptq_exp.results.series import Rows, Series, as_series, rows_of, titled, with_labels


@dataclass(frozen=True)
class TableContent:
    """What a table shows."""

    title: str
    series: Series
    failures: Sequence[Failure] = ()
    unfold: bool = False  # a line for each seed

    @classmethod
    def of_job(cls, record: JobRecord) -> "TableContent":
        """A job outside of a sweep."""
        return cls(record.title, {"": list(record.results)})

    @classmethod
    def of_sweep(cls, record: SweepRecord) -> "TableContent":
        """A sweep."""
        failures = with_labels(record.jobs, record.failures)
        return cls(titled(record.name, record.jobs), as_series(record.jobs), failures)

    @property
    def rows(self) -> Rows:
        """The lines by series."""
        return rows_of(self.series, self.unfold)
