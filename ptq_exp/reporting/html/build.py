"""What a report says, from the records of finished jobs."""

import dataclasses
import json
import shlex
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ptq_exp.base.options import flatten
from ptq_exp.base.text import write_text
from ptq_exp.config import Config
from ptq_exp.reporting import figures, plots
from ptq_exp.reporting.html import page
from ptq_exp.reporting.table import BITS, JOB, VERDICT, table_cells
from ptq_exp.results.files import read_failures, read_jobs, read_record
from ptq_exp.results.series import (
    Failure,
    Row,
    answers,
    as_series,
    labels,
    seed_groups,
    width,
    with_labels,
)

REPORT_FILE = "report.html"
SUMMARY_FILE = "summary.json"  # of a sweep: what its jobs' records do not say
MOST_JOBS = 12  # whose own figures a report shows; those of the others are in their runs
# What says nothing about the results, or is shown elsewhere.
NOT_SETTINGS = (
    "output_dir", "overrides", "command", "quant.name", "cache_dir", "resume", "fail_fast", "quiet", "tracking.",
    "data.used", "model.used",
)  # fmt: skip
CAPTIONS = {
    "accuracy_against_bits": "Accuracy against bit width",
    "accuracy_against_size": "Accuracy against size; the line joins what no smaller network beats",
    "layers": "Signal to quantization noise, and levels that occur, layer by layer",
    "weights": "Float weights and the levels they are rounded to",
    "activations": "Inputs of the layers on the calibration images, and where they are clipped",
    "confusion": "Which classes win and lose predictions",
    "levels": "Levels that occur, and signal to quantization noise",
    "one_layer": "Sensitivity: one layer quantized at a time",
    "pareto": "Mixed precision: what is lost at how many bits",
    "first_conv_density": "First convolution: weights, standard deviation, clipping value",
    "training": "Training of the float network",
}


@dataclasses.dataclass
class Results:
    """A finished sweep, or a single job: then there is one record, and no figures above its own."""

    title: str
    jobs: list[dict[str, Any]]
    figures: list[dict[str, bytes]]  # of every job, by file name
    command: list[str]  # as typed, without `python run.py`
    failures: list[Failure] = dataclasses.field(default_factory=list)
    sweep: bool = True

    @property
    def series(self) -> dict[str, list[Row]]:
        """The rows, by what sets their jobs apart."""
        return as_series(self.jobs)


def sweep_results(folder: Path, title: str, summary: dict[str, Any] | None = None) -> Results:
    """A sweep from its folder. `summary`, what an earlier report noted, decides command, failures and order."""
    about = summary or {}
    places = {run_id: position for position, run_id in enumerate(about.get("jobs", []))}
    found = sorted(read_jobs(folder, with_folder=True), key=lambda job: places.get(job["run_id"], len(places)))
    failures = about.get("failures", read_failures(folder))
    pictures = [images(job.pop("folder") / "artifacts") for job in found]
    return Results(title, found, pictures, about.get("command", []), with_labels(found, failures))


def job_results(folder: Path) -> Results:
    """A single job from its folder."""
    record = read_record(folder)
    assert record is not None, folder
    return Results(record["title"], [record], [images(folder / "artifacts")], record.get("command", []), sweep=False)


def images(folder: Path) -> dict[str, bytes]:
    """The figures in a folder, by file name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"), key=_place)}


def _place(path: Path) -> tuple[int, str]:
    """In the order of `CAPTIONS`."""
    return next((n for n, start in enumerate(CAPTIONS) if path.name.startswith(start)), len(CAPTIONS)), path.name


def report(results: Results, drawn: dict[str, bytes]) -> str:
    """The page of a sweep or job; `drawn` are the figures over all jobs."""
    return page.document(results.title, *_summary(results), *_details(results, drawn))


def _summary(results: Results) -> list[str]:
    records, failed = results.jobs, len(results.failures)
    used = sorted({f"{job['params'].get('model.used', '')} on {job['params'].get('data.used', '')}" for job in records})
    count = f"{len(records)} jobs finished, {failed} failed. " if results.sweep else ""
    methods = _distinct(" ".join(job.get("method", [])) for job in records)
    parts = [page.paragraph(f"{count}{'; '.join(used)}. Method: {', '.join(methods)}.", "soft")]
    if records:
        parts += [page.paragraph(sentence, "answer") for sentence in answers(results.series)]
    parts.append(result_table(results))
    parts += [
        page.paragraph(f"Failed: quant.bits={f['bits']} {f['overrides']}: {f['error']}") for f in results.failures
    ]
    return parts


def result_table(results: Results) -> str:
    """The same table as in the terminal."""
    cells = table_cells(results.series, results.failures)
    return page.table(cells.headings, cells.lines, words=(JOB, VERDICT))


def _details(results: Results, drawn: dict[str, bytes]) -> list[str]:
    names = labels(results.jobs) if len(results.jobs) > 1 else ["" for _ in results.jobs]
    said = [
        [*([name] if any(names) else []), width(row), row["diagnosis"]]
        for name, job in zip(names, results.jobs, strict=True) for row in job["rows"]
    ]  # fmt: skip
    why = [*([JOB] if any(names) else []), BITS, "diagnosis"]
    own = []
    for name, job, pictures in list(zip(names, results.jobs, results.figures, strict=True))[:MOST_JOBS]:
        if pictures:
            widths = ", ".join(map(width, job["rows"]))
            title = f"{name}: {widths}" if name else widths
            own += [page.heading(title), page.figures(captioned(pictures))]
    if len(results.jobs) > MOST_JOBS:
        own.append(page.paragraph(f"The figures of the other {len(results.jobs) - MOST_JOBS} jobs are in their runs."))
    return [
        page.section("Figures", page.figures(captioned(drawn))),
        page.section("Why", page.table(why, said, (JOB, BITS), ("diagnosis",))) if said else "",
        page.section("Job by job" if results.sweep else "Layers and classes", *own),
        *_provenance(results),
    ]


def captioned(pictures: dict[str, bytes]) -> dict[str, bytes]:
    """Figures by caption instead of file name; what tells several of a kind apart is kept."""
    shown = {}
    for name, png in pictures.items():
        stem = name.removesuffix(".png")
        kind = next((start for start in CAPTIONS if stem.startswith(start)), stem)
        rest = stem.removeprefix(kind).strip("_")
        rest = f"quant.bits={rest[1:]}" if rest[:1] == "w" and rest[1:].isdecimal() else rest
        shown[CAPTIONS.get(kind, kind) + (f" ({rest})" if rest else "")] = png
    return shown


def _provenance(results: Results) -> list[str]:
    defaults = default_settings()
    changed = [
        [key, _text(defaults.get(key)), ", ".join(values)]
        for key, values in settings(results.jobs).items()
        if values != [_text(defaults.get(key))]
    ]
    machines = _distinct(job["tags"].get("hardware", "") for job in results.jobs)
    versions = _distinct(", ".join(f"{k} {v}" for k, v in job.get("versions", {}).items()) for job in results.jobs)
    data = _distinct(_data(job["dataset"]) for job in results.jobs if job.get("dataset"))
    lines = [["hardware", text] for text in machines] + [["versions", text] for text in versions if text]
    lines += [["data", text] for text in data]
    lines += [["float model", text] for text in _distinct(job["tags"].get("float_digest", "") for job in results.jobs)]
    return [
        page.section("Configuration, where it differs from the defaults",
                     page.table(["key", "default", "here"], changed, ("key",), ("default", "here"))),
        page.section("To repeat it", page.code(repeat_command(results)) if results.command else "",
                     page.table(["what", "used"], lines, ("what",), ("used",))),
    ]  # fmt: skip


def _data(about: dict[str, Any]) -> str:
    counts = ", ".join(f"{value} {key}" if isinstance(value, int) else value for key, value in about["profile"].items())
    return f"{about['name']}: {counts}; from {about['source']}; SHA-256 {about['fingerprint']}"


def repeat_command(results: Results) -> str:
    """What to type for the same results: with the data set that `data=auto` found, quoted for a shell."""
    words = [word for word in results.command if word != "data=auto"]
    if results.jobs and results.jobs[0]["params"].get("data.name") == "auto":
        words.append(f"data={results.jobs[0]['params']['data.used']}")
    return shlex.join(["python", "run.py", *words, *(["-m"] if results.sweep else [])])


def settings(jobs: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The values that every key has in some job, as text."""
    keys = dict.fromkeys(key for job in jobs for key in job["params"] if not key.startswith(NOT_SETTINGS))
    return {key: _distinct(_text(job["params"].get(key)) for job in jobs) for key in keys}


def default_settings() -> dict[str, Any]:
    """What every key is where the command line says nothing."""
    return flatten(Config())


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _text(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool | list | dict) else str(value)


def comparison(first: Results, second: Results) -> str:
    """Two sweeps side by side: tables, curves in one figure, and the settings that differ."""
    names = [first.title, second.title]
    if names[0] == names[1]:
        names = [f"A: {names[0]}", f"B: {names[1]}"]
    both = {
        f"{name}: {label}" if label else name: rows
        for name, results in zip(names, (first, second), strict=True)
        for label, rows in seed_groups(results.series).items()
    }
    columns = [
        page.heading(name) + "".join(page.paragraph(text, "answer") for text in answers(results.series))
        + result_table(results)
        for name, results in zip(names, (first, second), strict=True)
    ]  # fmt: skip
    ours, theirs = settings(first.jobs), settings(second.jobs)
    differ = [
        [key, ", ".join(ours.get(key, [])), ", ".join(theirs.get(key, []))]
        for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)
    ]  # fmt: skip
    data = [{job["tags"].get("data_fingerprint") for job in results.jobs} for results in (first, second)]
    warning = "These were measured on different images: compare what each loses, not the accuracies themselves."
    return page.document(
        f"{names[0]} and {names[1]}",
        page.paragraph(warning, "answer") if data[0] != data[1] else "",
        page.sides(*columns),
        page.section("Figures", page.figures(captioned(draw(both)))),
        page.section("Settings that differ", page.table(["key", *names], differ, ("key",), names)),
        *[page.section(f"To repeat {name}", page.code(repeat_command(results)) if results.command else "")
          for name, results in zip(names, (first, second), strict=True)],
    )  # fmt: skip


def draw(series: dict[str, list[Row]]) -> dict[str, bytes]:
    """Accuracy against bits and against size."""
    with tempfile.TemporaryDirectory() as folder:
        plots.accuracy_against_bits(series, Path(folder) / "accuracy_against_bits.png")
        plots.accuracy_against_size(series, Path(folder) / "accuracy_against_size.png")
        return images(Path(folder))


def write_sweep(folder: Path, title: str, command: list[str], target: Path) -> None:
    """Draw the figures over all jobs of a sweep into `target`, and leave its report and summary there."""
    failures = read_failures(folder)
    summary = {"name": title, "command": command, "failures": failures}
    results = sweep_results(folder, title, summary)
    summary["jobs"] = [job["run_id"] for job in results.jobs]
    write_text(target / SUMMARY_FILE, json.dumps(summary, indent=1))
    figures.draw_sweep(target, results.jobs)
    write_text(target / REPORT_FILE, report(results, images(target)))


def write_job(folder: Path) -> None:
    """Leave the report of a single job among its artifacts."""
    write_text(folder / "artifacts" / REPORT_FILE, report(job_results(folder), {}))
