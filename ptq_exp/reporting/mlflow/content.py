"""The content that is logged for a finished job or sweep."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ptq_exp.base.console import log
from ptq_exp.base.errors import UserError
from ptq_exp.base.text import write_text
from ptq_exp.reporting.exports import export_markdown, exports_of_series
from ptq_exp.reporting.mlflow import view
from ptq_exp.reporting.mlflow.place import Place
from ptq_exp.reporting.mlflow.reading import SUMMARY_FILE
from ptq_exp.reporting.mlflow.registry import register
from ptq_exp.reporting.mlflow.run import MAX_VALUE_LENGTH, Run, child, start_run
from ptq_exp.reporting.notes import job_note, sweep_note
from ptq_exp.results.files import RESULTS_FILE, SWEEP_FILE, read_job, read_sweep, to_json
from ptq_exp.results.records import BitWidthResult, JobRecord, SweepRecord
from ptq_exp.results.series import Series, answers, as_series, width, with_labels

MOST_CURVES = 20  # in one link, whose length is limited
Points = list[tuple[int, dict[str, float]]]  # (step, metrics)


def log_job(record: JobRecord, run: Run, place: Place, uri: str | None = None, parent: str | None = None) -> None:
    """Log a job, end its run as FINISHED, and mark it as logged in its folder.

    A repeated call adds what is missing. `run` is the job's open run; if it is not open, the run of `place` is
    reopened. `uri` and `parent` replace the store and the sweep of `place`. Raises `UserError` if the store cannot be
    used.
    """
    if run.client is None:
        belongs_to = parent or place.parent
        run = start_run(place.options(uri), record.name, belongs_to, record.key, place.run_id, record.started)
    run.rename(record.name)
    exported = export_markdown(exports_of_series({"": list(record.results)}))
    run.log_series(points(record), record.params, record.tags | {"mlflow.note.content": job_note(record) + exported})
    run.log_folder(record.artifacts)
    run.log_file(record.folder / RESULTS_FILE)
    if record.dataset:
        run.log_input(record.dataset)
    if record.register:
        register(run, record.register, record.artifacts, record.results)
    run.end(ended=record.ended)
    # This comes last, so that a job killed earlier is logged again.
    dataclasses.replace(place, run_id=run.run_id, logged=True).write(record.folder)


def points(record: JobRecord) -> Points:
    """The metrics of a job and its training: those of a single bit width, or series with the bits as steps."""
    if len(record.results) == 1:
        found: Points = [(0, record.results[0].metrics())]
    else:
        found = [
            (result.bits, {f"{key}_vs_bits": value for key, value in result.metrics().items()})
            for result in record.results
        ]
        found.append((0, several_widths(record.results)))
    return found + list(enumerate(record.history, start=1))


def several_widths(results: Iterable[BitWidthResult]) -> dict[str, float]:
    """The metrics of a run with several results: top-1 (percent) of the best, the narrowest and the float network.

    They are rounded to two decimals, as MLflow shows them in its list. `top1` would mix with that of single results.
    """
    by_width = sorted(results, key=lambda result: result.bits_mean)
    best, first = max(result.top1 for result in by_width), by_width[0]
    found = {"top1_best": best, "top1_narrowest": first.top1, "top1_float": first.top1_float}
    return {key: round(value, 2) for key, value in found.items()}


def log_sweep(parent: Run, record: SweepRecord, status: str) -> None:
    """Log the table, report, figures and curves of the finished jobs to the parent run, and end it."""
    record.figures.mkdir(exist_ok=True)
    if record.jobs or record.searches:
        run_ids = [place.run_id for job in record.jobs if (place := Place.read(job.folder))]
        summary: dict[str, Any] = {"name": record.name, "command": record.command, "jobs": run_ids}
        summary |= {"failures": record.failures, "search": record.search, "searches": record.searches}
        write_text(record.figures / SUMMARY_FILE, json.dumps(to_json(summary), indent=1))
    note = sweep_note(record)
    if record.jobs and record.jobs[0].dataset:
        parent.log_input(record.jobs[0].dataset)
        parent.log(params={"data.used": record.jobs[0].dataset.name})  # the column of the runs page
    if record.search is not None:
        parent.log(record.search.metrics())
    elif record.jobs:
        parent.log(several_widths(result for job in record.jobs for result in job.results))
        lowest = min((result for job in record.jobs for result in job.results), key=lambda result: result.top1)
        note += f"\n\n{width(lowest)}. {lowest.diagnosis}"
    headline = f"**{answers(as_series(record.jobs))[-1]}**" if record.jobs else ""  # of several series, that of all
    link = _curves_link(parent, _runs_with_curves(parent, record))
    note = note if record.search else "\n\n".join(filter(None, [headline, link, note]))
    parent.log(tags={"mlflow.note.content": _fitting(note)})
    parent.log_folder(record.figures)
    for failure in with_labels(record.jobs, record.failures):
        place = Place.read(failure.folder)
        if place is None or not place.run_id:  # it failed before it had a run, because of its configuration
            run = child(parent, " ".join(filter(None, [f"w{failure.bits}", failure.overrides])))
            run.log(tags={"error": failure.error})
            run.log_file(Path(failure.log))
            run.end("FAILED")
    parent.end(status)


def _fitting(note: str) -> str:
    """The note, cut after a whole line if it is longer than MLflow allows."""
    if len(note) <= MAX_VALUE_LENGTH:
        return note
    end = note.rfind("\n", 0, MAX_VALUE_LENGTH - 100)
    return f"{note[:end]}\n\nThe table is too long for this page. The complete table is the artifact `table.md`."


def _curves_link(parent: Run, drawn: list[str]) -> str:
    """A link to the curves of the runs `drawn`, or "" if there are none."""
    if not drawn:
        return ""
    return f"[Top-1 against bits, all curves of this sweep]({view.curves(parent.experiment_id, drawn[:MOST_CURVES])})"


def _runs_with_curves(parent: Run, record: SweepRecord) -> list[str]:
    """The ids of the runs with the curves of a sweep. Curves that no job has are logged."""
    if parent.client is None or record.search is not None:
        return []
    # A job with several bit widths logs its own curve, so a copy would appear twice.
    if all(len(job.results) == 1 for job in record.jobs):
        return _log_curves(parent, as_series(record.jobs))
    places = [Place.read(job.folder) for job in record.jobs if len(job.results) > 1]
    return [place.run_id for place in places if place and place.run_id]


def _log_curves(parent: Run, series: Series) -> list[str]:
    """Log one curve per series. Returns the ids of the runs that have them."""
    drawn = []
    for label, results in series.items():
        curve = [(result.bits, {"top1_vs_bits": result.top1}) for result in results]
        if len({bits for bits, _ in curve}) < 2:
            continue
        if len(series) == 1:
            parent.log_series(curve)
            drawn.append(parent.run_id)
        else:
            run = child(parent, f"{label} curve")  # MLflow shows about the first 14 letters
            run.log_series(curve)
            run.end()
            drawn.append(run.run_id)
    return drawn


def upload_folder(folder: Path, uri: str | None = None) -> str:
    """Log everything below `folder` that is not in its store yet: jobs, then sweeps. Returns a summary to print.

    `uri` replaces the store in the jobs' configuration. Raises `UserError` if there is nothing to log or the store
    cannot be used.
    """
    jobs = sorted(path.parent for path in folder.rglob(RESULTS_FILE) if path.parent.name != "artifacts")
    if not jobs:
        raise UserError(f"{folder} contains no finished job: there is no {RESULTS_FILE} below it.")
    sweeps = {path.parent: place for path in folder.rglob(SWEEP_FILE) if (place := Place.read(path.parent))}
    parents = {place: start_run(at.options(uri), at.name, old=at.run_id) for place, at in sweeps.items()}
    count = 0
    for job in jobs:
        record, at = read_job(job), Place.read(job)
        if record and at and not at.logged:
            parent = parents.get(job.parent)
            log_job(record, Run(None), at, uri, parent.run_id if parent else None)
            log.info("%s: logged.", job)
            count += 1
    for sweep_folder, parent in parents.items():
        sweep = read_sweep(sweep_folder)
        log_sweep(parent, sweep, "FAILED" if sweep.failures else "FINISHED")
    return f"{count} logged, {len(jobs) - count} already in the store."
