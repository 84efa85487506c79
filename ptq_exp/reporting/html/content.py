"""The content of a report, from the records of finished jobs."""

import base64
import functools
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptq_exp.reporting import search
from ptq_exp.reporting.comparisons import WORDS, comparison_cells, comparison_notes
from ptq_exp.reporting.exports import FILE, export_cells, exports_of_series, integer_sentences, notes
from ptq_exp.reporting.table import BITS, JOB, VERDICT, Cells, table_cells
from ptq_exp.results.comparison import against_best
from ptq_exp.results.records import DatasetSummary, Failure, JobRecord, SearchRecord, SweepRecord
from ptq_exp.results.search import sentence
from ptq_exp.results.series import (
    Series,
    answers,
    as_series,
    coverage,
    labels,
    rows_of,
    seed_note,
    width,
    with_labels,
)

MOST_JOBS = 12  # jobs whose figures a report shows; the figures of the others are in their runs
# Keys that do not affect the results or are shown elsewhere.
NOT_SETTINGS = (
    "output_dir", "overrides", "command", "quant.name", "cache_dir", "resume", "fail_fast", "quiet", "tracking.",
    "data.used", "model.used",
)  # fmt: skip
CAPTIONS = {
    "search": "Trials of the search: accuracy against size, with the margin",
    "accuracy_against_bits": "Accuracy against bit width",
    "accuracy_against_size": "Accuracy against size; the line is the Pareto front",
    "layers": "Signal-to-quantization-noise ratio (SQNR) and levels used, by layer",
    "weights": "Float weights and quantization levels",
    "activations": "Layer inputs on the calibration images, with clipping values",
    "confusion": "Change of predictions by class",
    "levels": "Levels used and signal-to-quantization-noise ratio (SQNR), by layer",
    "one_layer": "Sensitivity: one layer quantized at a time",
    "pareto": "Mixed precision: sensitivity against mean bits per weight",
    "first_conv_density": "First convolution: weight distribution, standard deviation and clipping value",
    "training": "Training of the float network",
}


@dataclass(frozen=True)
class Results:
    """A finished sweep or a single job. A single job has one record and no figures over several jobs."""

    title: str
    jobs: tuple[JobRecord, ...]
    command: tuple[str, ...]  # as typed, without `python run.py`
    failures: Sequence[Failure] = ()
    sweep: bool = True
    search: SearchRecord | None = None
    searches: tuple[SearchRecord, ...] = ()

    @classmethod
    def of_job(cls, record: JobRecord) -> "Results":
        """A single job."""
        return cls(record.title, (record,), record.command, sweep=False)

    @property
    def series(self) -> Series:
        """The results, grouped by the settings in which the jobs differ."""
        return as_series(self.jobs)


def sweep_results(record: SweepRecord) -> Results:
    """A sweep."""
    return Results(
        record.name, record.jobs, record.command, with_labels(record.jobs, record.failures),
        search=record.search, searches=record.searches,
    )  # fmt: skip


def images(folder: Path) -> dict[str, bytes]:
    """The figures in a folder, by file name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"), key=_place)}


def _place(path: Path) -> tuple[int, str]:
    """A sort key: the order of `CAPTIONS`, then the file name."""
    return next((n for n, start in enumerate(CAPTIONS) if path.name.startswith(start)), len(CAPTIONS)), path.name


@functools.cache
def templates() -> Any:
    """The environment of the templates. It escapes every value."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("ptq_exp.reporting.html"), autoescape=True)
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    return environment


def report(results: Results, drawn: dict[str, bytes], unfold: bool = False) -> str:
    """The page of a sweep or job. `drawn` contains the figures over all jobs. `unfold` opens the table of all seeds."""
    pairs = against_best(rows_of(results.series))
    names = labels(results.jobs) if len(results.jobs) > 1 else ["" for _ in results.jobs]
    page: str = (
        templates()
        .get_template("report.html.j2")
        .render(
            title=results.title,
            summary=_summary(results),
            answers=_answers(results),
            table=_table(results),
            seeds=_each_seed(results),
            seed_note=seed_note(rows_of(results.series)),
            unfold=unfold,
            compared=comparison_cells(pairs),
            compared_words=WORDS,
            compared_notes=comparison_notes(pairs),
            words=(JOB, VERDICT, FILE, *search.WORDS),
            failures=results.failures,
            figures=captioned(drawn),
            diagnoses=_diagnoses(results, names),
            exports=_exports(results),
            export_notes=[*notes(exports_of_series(results.series)), *integer_sentences(results.series)],
            coverage=coverage(result for job in results.jobs for result in job.results),
            float_tensors=_float_tensors(results),
            own_title="By job" if results.sweep else "Layers and classes",
            own_figures=_own_figures(results, names),
            others=max(0, len(results.jobs) - MOST_JOBS),
            changed=_changed(results),
            command=repeat_command(results) if results.command else "",
            provenance=_provenance(results),
        )
    )
    return page


def _summary(results: Results) -> str:
    used = sorted({f"{job.params.get('model.used', '')} on {job.params.get('data.used', '')}" for job in results.jobs})
    finished = "1 job" if len(results.jobs) == 1 else f"{len(results.jobs)} jobs"
    count = f"{finished} finished, {len(results.failures)} failed. " if results.sweep else ""
    methods = _distinct(" ".join(job.method) for job in results.jobs)
    return f"{count}{'; '.join(used)}. Method: {', '.join(methods)}."


def _answers(results: Results) -> list[str]:
    """The sentences above the table. A search begins with its answer."""
    if found := results.search:
        return [sentence(found), *search.conclusions(found), search.explanation(found)]
    if results.searches:
        return [f"{found.label or found.network}: {sentence(found)}" for found in results.searches]
    return answers(results.series) if results.jobs else []


def _table(results: Results) -> Cells:
    """The same table as in the terminal."""
    if results.search:
        return search.trial_cells(results.search)
    if results.searches:
        return search.answer_cells(results.searches)
    return table_cells(results.series, results.failures)


def _each_seed(results: Results) -> Cells | None:
    """The table with a line for each seed, or None if no line of the table has several seeds."""
    if results.search or not seed_note(rows_of(results.series)):
        return None
    return table_cells(results.series, results.failures, unfold=True)


def _diagnoses(results: Results, names: list[str]) -> Cells | None:
    said = [
        [*([name] if any(names) else []), width(result), result.diagnosis]
        for name, job in zip(names, results.jobs, strict=True) for result in job.results
    ]  # fmt: skip
    return Cells([*([JOB] if any(names) else []), BITS, "diagnosis"], said) if said else None


def _exports(results: Results) -> Cells | None:
    """The table of exported files."""
    cells = export_cells(exports_of_series(results.series))
    return cells and Cells(cells.headings, [[cell.replace("\n", ", ") for cell in line] for line in cells.lines])


def _float_tensors(results: Results) -> list[tuple[str, str]]:
    """The weights that stay float in any job, with their reasons."""
    pairs = [pair for job in results.jobs for result in job.results for pair in result.float_tensors.items()]
    return list(dict.fromkeys(pairs))


def _own_figures(results: Results, names: list[str]) -> dict[str, dict[str, bytes]]:
    """The figures of the first jobs, by caption, under the name of each job."""
    found = {}
    for name, job in list(zip(names, results.jobs, strict=True))[:MOST_JOBS]:
        if pictures := captioned(images(job.artifacts)):
            widths = ", ".join(map(width, job.results))
            found[f"{name}: {widths}" if name else widths] = pictures
    return found


def captioned(pictures: dict[str, bytes]) -> dict[str, bytes]:
    """Figures by caption instead of file name. Captions of several figures of one kind keep what distinguishes them."""
    shown = {}
    for name, png in pictures.items():
        stem = name.removesuffix(".png")
        kind = next((start for start in CAPTIONS if stem.startswith(start)), stem)
        rest = stem.removeprefix(kind).strip("_")
        rest = f"quant.bits={rest[1:]}" if rest[:1] == "w" and rest[1:].isdecimal() else rest
        shown[CAPTIONS.get(kind, kind) + (f" ({rest})" if rest else "")] = png
    return shown


def _changed(results: Results) -> list[list[str]]:
    """The settings in which some job differs from the default."""
    defaults = {key: value for job in results.jobs for key, value in job.defaults.items()}
    return [
        [key, _text(defaults[key]), ", ".join(values)]
        for key, values in settings(results.jobs).items() if key in defaults
    ]  # fmt: skip


def _provenance(results: Results) -> list[tuple[str, str]]:
    jobs = results.jobs
    versions = (", ".join(f"{name} {version}" for name, version in job.versions.items()) for job in jobs)
    found = {
        "hardware": (job.tags.get("hardware", "") for job in jobs),
        "versions": versions,
        "data": (_data(job.dataset) for job in jobs if job.dataset),
        "float model": (job.tags.get("float_digest", "") for job in jobs),
    }
    return [(what, text) for what, texts in found.items() for text in _distinct(texts) if text]


def _data(about: DatasetSummary) -> str:
    counts = ", ".join(f"{value} {key}" if isinstance(value, int) else value for key, value in about.profile.items())
    return f"{about.name}: {counts}; from {about.source}; SHA-256 {about.fingerprint}"


def repeat_command(results: Results) -> str:
    """The command that repeats the results, quoted for a shell, with the data set that `data=auto` found."""
    words = [word for word in results.command if word != "data=auto"]
    if results.jobs and results.jobs[0].params.get("data.name") == "auto":
        words.append(f"data={results.jobs[0].params['data.used']}")
    return shlex.join(["python", "run.py", *words, *(["-m"] if results.sweep else [])])


def settings(jobs: Sequence[JobRecord]) -> dict[str, list[str]]:
    """The values of every key in the jobs, as text."""
    keys = dict.fromkeys(key for job in jobs for key in job.params if not key.startswith(NOT_SETTINGS))
    return {key: _distinct(_text(job.params.get(key)) for job in jobs) for key in keys}


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _text(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool | list | dict) else str(value)
