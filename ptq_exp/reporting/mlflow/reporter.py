"""Jobs and sweeps as runs in an MLflow store: a parent run for each sweep, a child run for each job."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path

from ptq_exp.base.console import log
from ptq_exp.base.errors import UserError, without_password
from ptq_exp.base.files import digest, write_json
from ptq_exp.base.text import read_text
from ptq_exp.reporting import JobStart, Reporter, SweepStart
from ptq_exp.reporting.mlflow import content, reading
from ptq_exp.reporting.mlflow.options import TrackingOptions
from ptq_exp.reporting.mlflow.place import Place
from ptq_exp.reporting.mlflow.run import Run, end_open_runs, start_run, tolerant
from ptq_exp.reporting.mlflow.store import PARENT_VARIABLE
from ptq_exp.results.files import job_folders
from ptq_exp.results.records import JobRecord, SweepRecord

NOT_THE_SWEEP = ("resume=", "fail_fast=", "tracking.", "tracking=")


class Mlflow(Reporter):
    """Logs to the store of `tracking.uri`. With tracking=none, every call does nothing."""

    def __init__(self, tracking: TrackingOptions):
        super().__init__(tracking)
        self.run = Run(None)
        self.start: JobStart | None = None

    def job_begins(self, start: JobStart) -> None:
        """Start the job's run, or reopen that of an earlier attempt.

        In a sweep, a job continues if the store has become unreachable, and it is logged later. Raises `UserError` for
        a single job if the store cannot be used.
        """
        self.start, parent = start, os.environ.get(PARENT_VARIABLE)
        earlier = Place.read(start.earlier) if start.earlier else None
        try:
            old = earlier.run_id if earlier else None
            self.run = start_run(self.tracking, start.name, parent, start.key, old, start.started)
        except Exception as error:
            if parent is None:
                raise
            log.warning("%s The job continues; its results are kept in its folder.", _first_line(error))
        if place := Place.of(self.tracking, start.name):
            dataclasses.replace(place, run_id=self.run.run_id).write(start.folder)

    def training(self) -> contextlib.AbstractContextManager[None]:
        """Log the machine's load during a training."""
        return self.run.system_metrics()

    def job_failed(self, error: BaseException) -> None:
        """End the run as FAILED, with the error as a tag and the log as an artifact."""
        killed = isinstance(error, KeyboardInterrupt | SystemExit)
        tolerant(self.run.log, None, 0, None, {"error": f"{type(error).__name__}: {error}"})
        if self.start:
            tolerant(self.run.log_file, self.start.folder / "run.log")
        tolerant(self.run.end, "KILLED" if killed else "FAILED")

    def job(self, record: JobRecord) -> None:
        """Log a finished job and end its run. If that fails in a sweep, the sweep retries at its end.

        Raises `UserError` if a single job cannot be logged.
        """
        place = Place.read(record.folder)
        if place is None or place.logged:
            return
        try:
            content.log_job(record, self.run, place)
        except Exception as error:
            reason = f"{record.overrides or 'The job'}: not logged yet, kept in {record.folder}: {_first_line(error)}"
            if self.start is None or self.start.alone:
                raise UserError(f"{reason}. {how_to_log_later(record.folder)}") from error
            log.warning("%s", reason)

    def find(self, key: str, folder: Path) -> JobRecord | None:
        """A finished job with this key from the store, fetched into `folder`."""
        if not self.tracking.enabled or (found := reading.find_job(self.tracking, key, folder)) is None:
            return None
        record, run_id = found
        if place := Place.of(self.tracking, record.name):
            dataclasses.replace(place, run_id=run_id, logged=True).write(folder)
        return record

    def sweep_begins(self, start: SweepStart) -> None:
        """Start the parent run. With `resume`, reopen the run of the same earlier sweep if there is one.

        Raises `UserError` if the store cannot be used.
        """
        place = Place.of(self.tracking, start.name)
        if place is None:
            return
        words = sorted(word for word in start.command if not word.lstrip("+~").startswith(NOT_THE_SWEEP))
        pointer = start.cache / "sweeps" / f"{digest(words, dataclasses.asdict(place))[:32]}.json"
        old = None
        if start.resume:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                old = str(json.loads(read_text(pointer))["run_id"])
        self.run = start_run(self.tracking, start.name, os.environ.get(PARENT_VARIABLE), old=old)
        # The runs page shows the sweep's overrides in its row.
        self.run.log(params=dict(word.lstrip("+~").partition("=")[::2] for word in words))
        dataclasses.replace(place, run_id=self.run.run_id).write(start.folder)
        write_json(pointer, {"run_id": self.run.run_id})
        os.environ[PARENT_VARIABLE] = self.run.run_id  # jobs in any process read it

    def gather(self, folder: Path) -> None:
        """Fetch the jobs that ran on workers without a shared disk."""
        os.environ.pop(PARENT_VARIABLE, None)
        if self.run.client is None:
            return
        here = {place.run_id for job in job_folders(folder) if (place := Place.read(job))}
        for number, run_id in enumerate(reading.finished_children(self.run)):
            if run_id not in here:
                target = folder / f"from-worker-{number:04d}-{run_id[:8]}"
                record = reading.fetch_job(self.run.client, run_id, target)
                if record and (place := Place.of(self.tracking, record.name)):
                    dataclasses.replace(place, parent=self.run.run_id, run_id=run_id, logged=True).write(target)

    def sweep(self, record: SweepRecord) -> None:
        """Log the jobs that could not be logged earlier, then table, report, figures and curves to the parent run.

        Raises `UserError` if something could not be logged.
        """
        if not self.tracking.enabled:
            return
        problems = []
        for job in record.jobs:
            place = Place.read(job.folder)
            if place and not place.logged:
                try:
                    content.log_job(job, Run(None), place)
                except Exception as error:
                    problems.append(f"{job.folder}: {error}")
        failed = record.failures or record.problems or problems
        content.log_sweep(self.run, record, "FAILED" if failed else "FINISHED")
        if problems:
            raise UserError(problems[0])

    def close(self, status: str) -> None:
        """End every open run of this process."""
        os.environ.pop(PARENT_VARIABLE, None)
        end_open_runs(status)

    def where(self) -> list[str]:
        """Instructions for opening the run."""
        return self.run.how_to_open()


def how_to_log_later(folder: Path) -> str:
    """A sentence with the upload command."""
    return f"To log it later: python -m ptq_exp.runs.upload {folder}"


def _first_line(error: Exception) -> str:
    return without_password((str(error).splitlines() or [type(error).__name__])[0])
