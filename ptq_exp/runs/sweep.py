"""A sweep around its jobs: one parent run before the first, one table after the last, and uploads that come later."""

import contextlib
import json
from pathlib import Path
from typing import Any

from ptq_exp.base.console import log
from ptq_exp.base.errors import UserError, without_password
from ptq_exp.base.files import digest, write_atomically
from ptq_exp.base.text import read_text, write_text
from ptq_exp.reporting import mlflow as tracking
from ptq_exp.reporting.html.build import SUMMARY_FILE, write_sweep
from ptq_exp.reporting.mlflow import reading
from ptq_exp.reporting.mlflow.options import TrackingOptions
from ptq_exp.reporting.mlflow.upload import upload
from ptq_exp.reporting.table import markdown_table
from ptq_exp.results.files import RESULTS_FILE, job_folders, read_failures, read_jobs, read_record, write_record
from ptq_exp.results.series import Row, as_series, failure_line, titled, width, with_labels

SWEEP_FILE = "sweep.json"  # in the sweep's folder: its name and its parent run
NOT_THE_SWEEP = ("resume=", "fail_fast=", "tracking.", "tracking=")


def begin(config: TrackingOptions, name: str, overrides: list[str], folder: Path, cache: Path, resume: bool) -> Any:
    """The parent run of a sweep: with `resume` that of the same sweep before, where there was one.

    Raises `UserError` where the store cannot be used.
    """
    words = sorted(word for word in overrides if not word.lstrip("+~").startswith(NOT_THE_SWEEP))
    address = tracking.address(config, name)
    pointer = cache / "sweeps" / f"{digest(words, address)[:32]}.json"
    old = None
    if resume:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            old = str(json.loads(read_text(pointer))["run_id"])
    parent = tracking.start(config, name, old=old)
    # What the sweep was told: its row of the runs page shows it.
    parent.log(params=dict(word.lstrip("+~").partition("=")[::2] for word in words))
    command = list(map(without_password, overrides))
    content = json.dumps({"name": name, "run_id": parent.run_id, "run": address, "command": command})
    for path in (folder / SWEEP_FILE, pointer):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: write_text(temporary, content))
    return parent


def gather(parent: "tracking.Run", folder: Path) -> None:
    """Fetch records and figures of jobs that ran where this folder is not: on workers without a shared disk."""
    _fetch_missing(parent, reading.finished_children(parent), folder, "from-worker")


def _fetch_missing(store: "tracking.Run", run_ids: list[str], folder: Path, kind: str) -> None:
    """Fetch those jobs of the store that are not below `folder` yet."""
    here = {record["run_id"] for record in read_jobs(folder)}
    for number, run_id in enumerate(run_ids):
        if run_id and run_id not in here:
            fetch_job(store, run_id, folder / f"{kind}-{number:04d}-{run_id[:8]}")


def fetch_job(store: "tracking.Run", run_id: str, folder: Path) -> bool:
    """Fetch the record and the figures of a job from the store of any run; whether it has a record."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(UserError):
        reading.artifact(store.client, run_id, RESULTS_FILE, folder)
        if record := read_record(folder):
            write_record(folder, record | {"uploaded": True, "run_id": run_id})
            reading.figures(store.client, run_id, folder)
            return True
    return False


def fetch_sweep(parent: "tracking.Run", folder: Path) -> dict[str, Any]:
    """Fetch what a report of a sweep needs; what its summary says, nothing where an older version logged it."""
    gather(parent, folder)
    with contextlib.suppress(UserError, ValueError):
        path = reading.artifact(parent.client, parent.run_id, SUMMARY_FILE, folder)
        summary: dict[str, Any] = json.loads(read_text(path))
        _fetch_missing(parent, summary.get("jobs", []), folder, "resumed")  # they hang below the sweep that ran them
        return summary
    return {"failures": reading.failed_children(parent)}


def upload_jobs(folder: Path) -> list[str]:
    """Log the jobs below `folder` that are not in the store yet; what could not be logged, in words."""
    problems = []
    for job in job_folders(folder):
        record = read_record(job)
        if record and not record["uploaded"]:
            try:
                upload(job)
            except Exception as error:
                problems.append(f"{job}: {error}")
    return problems


def log_sweep(parent: "tracking.Run", folder: Path, title: str, status: str) -> None:
    """Log the table, the report, the figures and the curves of the finished jobs on the parent run, and end it."""
    jobs = read_jobs(folder)
    failures = with_labels(jobs, read_failures(folder))
    figures = folder / "sweep"
    figures.mkdir(exist_ok=True)
    series = as_series(jobs)
    table = markdown_table(series, titled(title, jobs), failures)
    note = "\n\n".join([table, *map(failure_line, failures)])
    write_text(figures / "table.md", note)
    if jobs:
        write_sweep(folder, title, read_command(folder), figures)
        lowest = min((row for rows in series.values() for row in rows), key=lambda row: row["top1"])
        note += f"\n\n{width(lowest)}. {lowest['diagnosis']}"
    parent.log(tags={"mlflow.note.content": _fitting(note)})
    parent.log_folder(figures)
    for failure in failures:
        if not failure["run_id"]:  # it failed before it had a run: its configuration is at fault
            child = tracking.child(parent, " ".join(filter(None, [f"w{failure['bits']}", failure["overrides"]])))
            child.log(tags={"error": failure["error"]})
            child.log_file(Path(failure["log"]))
            child.end("FAILED")
    # A job with several bit widths logs its curve itself: a copy would draw it twice.
    if jobs and all(len(job["rows"]) == 1 for job in jobs):
        _log_curves(parent, series)
    parent.end(status)


def _fitting(note: str) -> str:
    """The note, whole lines of it where it is longer than MLflow takes."""
    if len(note) <= tracking.MAX_VALUE_LENGTH:
        return note
    end = note.rfind("\n", 0, tracking.MAX_VALUE_LENGTH - 100)
    return f"{note[:end]}\n\nToo long for this page: all of it is in `table.md` among the artifacts."


def read_command(folder: Path) -> list[str]:
    """The overrides that a sweep was started with; none where an older version began it."""
    with contextlib.suppress(OSError, ValueError):
        return list(json.loads(read_text(folder / SWEEP_FILE)).get("command", []))
    return []


def _log_curves(parent: "tracking.Run", series: dict[str, list[Row]]) -> None:
    for label, rows in series.items():
        curve = [(row["bits"], {"top1_vs_bits": row["top1"]}) for row in rows]
        if len({bits for bits, _ in curve}) < 2:
            continue
        if len(series) == 1:
            parent.log_series(curve)
        else:
            child = tracking.child(parent, f"curve {label}")
            child.log_series(curve)
            child.end()


def upload_folder(folder: Path, uri: str | None) -> str:
    """Log everything below `folder` that is not in its store yet: jobs, then sweeps. Returns what was done, in words.

    Raises `UserError` where there is nothing to upload or the store cannot be used.
    """
    jobs = sorted(path.parent for path in folder.rglob(RESULTS_FILE) if path.parent.name != "artifacts")
    if not jobs:
        raise UserError(f"{folder} holds no finished job: there is no {RESULTS_FILE} below it.")
    todo = [job for job in jobs if (record := read_record(job)) and not record["uploaded"]]
    parents = {path.parent: _parent(path, uri) for path in folder.rglob(SWEEP_FILE)}
    for job in todo:
        parent = parents.get(job.parent)
        upload(job, uri=uri, parent=parent.run_id if parent else None)
        log.info("%s: logged.", job)
    for sweep, parent in parents.items():
        status = "FAILED" if read_failures(sweep) else "FINISHED"
        log_sweep(parent, sweep, json.loads(read_text(sweep / SWEEP_FILE))["name"], status)
    return f"{len(todo)} logged, {len(jobs) - len(todo)} were there already."


def _parent(path: Path, uri: str | None) -> "tracking.Run":
    content = json.loads(read_text(path))
    about = content["run"]
    config = tracking.settings_of(about, uri)
    return tracking.start(config, content["name"], old=content["run_id"])
