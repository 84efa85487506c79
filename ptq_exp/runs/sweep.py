"""A sweep: it notifies the outputs before its first job, and they report all jobs after the last."""

import os
import sys
from dataclasses import replace
from pathlib import Path

from ptq_exp.base import background
from ptq_exp.base.console import console, is_quiet
from ptq_exp.base.errors import without_password
from ptq_exp.base.paths import from_here
from ptq_exp.reporting import Reports, SweepStart
from ptq_exp.reporting.mlflow.options import TrackingOptions
from ptq_exp.reporting.mlflow.reporter import how_to_log_later
from ptq_exp.reporting.mlflow.store import PARENT_VARIABLE
from ptq_exp.results.files import read_sweep, write_sweep
from ptq_exp.runs.job import finished_here
from ptq_exp.runs.ledger import SWEEP_VARIABLE


class Sweep:
    """One sweep, in the process that runs it. A search is a sweep, too, and may be a job of another one."""

    def __init__(self, tracking: TrackingOptions, start: SweepStart):
        self.start, self.reports = start, Reports(tracking)
        self.outer = {name: os.environ[name] for name in (SWEEP_VARIABLE, PARENT_VARIABLE) if name in os.environ}

    def begin(self) -> None:
        """Notify every output, and the jobs (in any process) through an environment variable.

        Raises `UserError` if an output cannot be used.
        """
        self.reports.sweep_begins(self.start)
        write_sweep(self.start.folder, self.start.name, list(map(without_password, self.start.command)))
        os.environ[SWEEP_VARIABLE] = str(self.start.folder)
        background.start()

    def finish(self) -> None:
        """Report all jobs. Raises `SystemExit` if something could not be reported; it stays on disk."""
        folder = self.start.folder
        try:
            self._report(folder)
        finally:
            self.leave()

    def leave(self) -> None:
        """Let jobs that start from now on belong to the sweep around this one, if there is one."""
        for name in (SWEEP_VARIABLE, PARENT_VARIABLE):
            os.environ.pop(name, None)
        os.environ.update(self.outer)

    def _report(self, folder: Path) -> None:
        problems = background.finish()
        if background.interrupted():
            self.reports.close("KILLED")
            return
        problems += self.reports.gather(folder)
        record = replace(read_sweep(folder, finished_here()), problems=tuple(problems))
        problems += self.reports.sweep(record)
        if not is_quiet() and not self.outer:
            console.print(*(self.reports.where() or [f"Results: {from_here(folder)}"]), sep="\n")
        if problems:
            print(f"Error: not everything could be logged: {problems[0]}", file=sys.stderr)
            print(how_to_log_later(folder), file=sys.stderr)
            raise SystemExit(1)
