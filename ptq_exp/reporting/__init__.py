"""Outputs of finished work: terminal, plots, tables, HTML report, TensorBoard, MLflow, all behind one protocol.

An output is one folder with a class derived from `Reporter`, and one entry in `REPORTERS`. It implements `job` and
`sweep`. Nothing here measures or decides anything. This module does not import torch, because the schema of the command
line needs the options of an output.
"""

import contextlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptq_exp.reporting.mlflow.options import TrackingOptions
    from ptq_exp.results.records import JobRecord, SweepRecord

# The outputs in order. The terminal comes first, because the others may fail.
REPORTERS = [
    "ptq_exp.reporting.terminal.reporter:Terminal",
    "ptq_exp.reporting.plots.reporter:Plots",
    "ptq_exp.reporting.tables.reporter:Tables",
    "ptq_exp.reporting.html.reporter:HtmlReport",
    "ptq_exp.reporting.tensorboard.reporter:TensorBoard",
    "ptq_exp.reporting.mlflow.reporter:Mlflow",
]


@dataclass(frozen=True)
class JobStart:
    """The facts about a job that are known when it starts."""

    name: str
    key: str  # SHA-256 (hex) of everything that determines its result
    folder: Path
    alone: bool  # not a job of a sweep
    started: int  # ms since 1970
    earlier: Path | None = None  # with resume=true, the folder of an earlier attempt at the same job


@dataclass(frozen=True)
class SweepStart:
    """The facts about a sweep that are known when it starts."""

    name: str
    command: list[str]  # the overrides as typed
    folder: Path
    cache: Path
    resume: bool


class Reporter:
    """One output. `job` and `sweep` do its work. The other methods are for outputs that follow a run in progress."""

    def __init__(self, tracking: "TrackingOptions"):
        self.tracking = tracking

    def job(self, record: "JobRecord") -> None:
        """Report a finished job. A second call with the same job changes nothing."""
        raise NotImplementedError

    def sweep(self, record: "SweepRecord") -> None:
        """Report a sweep after its last job."""
        raise NotImplementedError

    def job_begins(self, start: JobStart) -> None:
        """Called before a job's work."""

    def job_failed(self, error: BaseException) -> None:
        """Called instead of `job` if the job raises `error`."""

    def sweep_begins(self, start: SweepStart) -> None:
        """Called before a sweep's first job, in the process that runs the sweep."""

    def training(self) -> contextlib.AbstractContextManager[None]:
        """A context manager around the training of a float network."""
        return contextlib.nullcontext()

    def find(self, key: str, folder: Path) -> "JobRecord | None":
        """The record of an earlier job with this key, fetched into `folder`, or None if this output has none."""
        return None

    def gather(self, folder: Path) -> None:
        """Fetch the jobs that ran on workers without a shared disk into the sweep's folder."""

    def close(self, status: str) -> None:
        """End everything that is still open in this process with `status` FAILED or KILLED."""

    def where(self) -> list[str]:
        """Lines on where to view the result, printed at the end of the run."""
        return []


class Reports:
    """All outputs of one job or one sweep."""

    def __init__(self, tracking: "TrackingOptions"):
        self.reporters: list[Reporter] = [pkgutil.resolve_name(name)(tracking) for name in REPORTERS]

    @contextlib.contextmanager
    def following(self, start: JobStart) -> Iterator[None]:
        """Notify every output that a job begins and, if it raises, that it failed."""
        for reporter in self.reporters:
            reporter.job_begins(start)
        try:
            yield
        except BaseException as error:
            for reporter in self.reporters:
                reporter.job_failed(error)
            raise

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """A context manager around the training of a float network."""
        with contextlib.ExitStack() as stack:
            for reporter in self.reporters:
                stack.enter_context(reporter.training())
            yield

    def job(self, record: "JobRecord") -> None:
        """Report a finished job to every output."""
        for reporter in self.reporters:
            reporter.job(record)

    def sweep_begins(self, start: SweepStart) -> None:
        """Notify every output that a sweep begins."""
        for reporter in self.reporters:
            reporter.sweep_begins(start)

    def sweep(self, record: "SweepRecord") -> list[str]:
        """Report a sweep to every output, even if one fails. Returns the error messages."""
        return self._each(lambda reporter: reporter.sweep(record))

    def gather(self, folder: Path) -> list[str]:
        """Fetch the jobs of a sweep that ran elsewhere. Returns the error messages."""
        return self._each(lambda reporter: reporter.gather(folder))

    def find(self, key: str, folder: Path) -> "JobRecord | None":
        """The record of an earlier job with this key, from the first output that has it."""
        return next(filter(None, (reporter.find(key, folder) for reporter in self.reporters)), None)

    def close(self, status: str) -> None:
        """End everything that is still open in this process."""
        for reporter in self.reporters:
            reporter.close(status)

    def where(self) -> list[str]:
        """Lines on where to view the result."""
        return [line for reporter in self.reporters for line in reporter.where()]

    def _each(self, call: Callable[[Reporter], None]) -> list[str]:
        problems = []
        for reporter in self.reporters:
            try:
                call(reporter)
            except Exception as error:
                problems.append(str(error) or type(error).__name__)
        return problems
