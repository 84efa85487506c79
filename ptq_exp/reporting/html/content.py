"""The content of a report, from the records of finished jobs."""

import functools
import json
import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ptq_exp.base.console import duration
from ptq_exp.reporting import search
from ptq_exp.reporting.comparisons import WORDS, comparison_cells, comparison_notes
from ptq_exp.reporting.exports import FILE, export_cells, exports_of_series, integer_sentences, notes
from ptq_exp.reporting.html import methods
from ptq_exp.reporting.html.pictures import Pictures, captioned, data_uri, images
from ptq_exp.reporting.table import JOB, LAYOUTS, VERDICT, Cells, table_cells
from ptq_exp.results.comparison import against_best
from ptq_exp.results.layers import heat_maps
from ptq_exp.results.names import data_in_words, network_of
from ptq_exp.results.records import DatasetSummary, Failure, JobRecord, SearchRecord, SweepRecord
from ptq_exp.results.search import named_sentence, sentence
from ptq_exp.results.series import (
    Series,
    answer_of_each,
    answers,
    as_series,
    coverage_of,
    fewest_of_all,
    number,
    rows_of,
    seed_note,
    with_labels,
)

# Keys that do not affect the results or are shown elsewhere.
NOT_SETTINGS = (
    "output_dir", "overrides", "command", "quant.name", "cache_dir", "resume", "fail_fast", "quiet", "tracking.",
    "data.used", "model.used",
)  # fmt: skip
NARROW = LAYOUTS[1]  # the intervals are below their values, so that a figure or another table fits beside it
MOST_ANSWERS = 4  # of methods, in the summary


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
    tracked: tuple[str, str] = ("", "")  # the address of its run in MLflow, and the command that serves it

    @classmethod
    def of_job(cls, record: JobRecord, tracked: tuple[str, str] = ("", "")) -> "Results":
        """A single job."""
        return cls(record.title, (record,), record.command, sweep=False, tracked=tracked)

    @property
    def series(self) -> Series:
        """The results, grouped by the settings in which the jobs differ."""
        return as_series(self.jobs)


def sweep_results(record: SweepRecord, tracked: tuple[str, str] = ("", "")) -> Results:
    """A sweep."""
    return Results(
        record.name, record.jobs, record.command, with_labels(record.jobs, record.failures),
        search=record.search, searches=record.searches, tracked=tracked,
    )  # fmt: skip


@functools.cache
def templates() -> Any:
    """The environment of the templates. It escapes every value."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("ptq_exp.reporting.html"), autoescape=True)
    environment.filters["data_uri"] = data_uri
    return environment


def report(results: Results, drawn: Pictures, unfold: bool = False) -> str:
    """The page of a sweep or job. `drawn` contains the figures over all jobs. `unfold` opens the table of all seeds."""
    pairs = against_best(rows_of(results.series))
    lead, further = _figures(results, drawn)
    every = methods.methods(results.jobs, drawn, set(lead.values()))
    page: str = (
        templates()
        .get_template("report.html.j2")
        .render(
            title=results.title,
            question=question(results),
            about=_about(results),
            tracked=results.tracked,
            answers=_answers(results),
            table=_table(results),
            seeds=_each_seed(results),
            seed_note=seed_note(rows_of(results.series)),
            unfold=unfold,
            compared=comparison_cells(pairs),
            compared_words=WORDS,
            compared_notes=comparison_notes(pairs),
            words=(JOB, VERDICT, VERDICT.replace(" ", "\n"), FILE, *search.WORDS),
            failures=results.failures,
            lead=captioned(lead),
            figures=captioned(further),
            methods=every,
            methods_title="Methods, layers and figures" if len(every) > 1 else "Layers and figures",
            layer_words=methods.WORDS,
            exports=_exports(results),
            export_notes=[*notes(exports_of_series(results.series)), *integer_sentences(results.series)],
            coverage=coverage_of(results.series),
            float_tensors=_float_tensors(results),
            others=max(0, len(results.jobs) - methods.MOST_JOBS),
            changed=_changed(results),
            command=repeat_command(results) if results.command else "",
            provenance=_provenance(results),
        )
    )
    return page


def question(results: Results) -> str:
    """What the sweep, the search or the job answers."""
    network = " and ".join(_distinct(network_of(job.params) for job in results.jobs)) or "the network"
    data = " and ".join(_distinct(data_in_words(str(job.params.get("data.used", ""))) for job in results.jobs))
    subject = f"{network} on {data}" if data else network
    if found := results.search:
        return f"How small can {subject} become within {number(found.max_drop)} points of its top-1?"
    if results.searches:
        return f"How small can {subject} become within the stated loss?"
    return f"How few bits can {subject} take, and why does it break?"


def _about(results: Results) -> list[str]:
    """Short facts below the question: jobs, methods, date and duration."""
    used = _distinct(" ".join(job.method) for job in results.jobs if job.method)
    facts = [results.title, *([f"Method: {', '.join(used)}"] if used and results.sweep and not results.search else [])]
    if results.sweep:
        failed = f", {len(results.failures)} failed" if results.failures else ""
        facts.append(f"{len(results.jobs)} {'trials' if results.search else 'jobs'}{failed}")
    if results.jobs:
        began, ended = min(job.started for job in results.jobs), max(job.ended for job in results.jobs)
        facts.append(time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(began / 1000)))
        facts.append(f"took {duration(results.search.seconds if results.search else (ended - began) / 1000)}")
    return facts


def _figures(results: Results, drawn: Pictures) -> tuple[Pictures, Pictures]:
    """The figure of the summary, and further figures over all jobs without those of single methods."""
    own = set(heat_maps(results.jobs).values())
    found = {name: content for name, content in drawn.items() if name.rpartition(".")[0] not in own}
    if not results.sweep:
        found = images(results.jobs[0].artifacts)
    lead = dict(list(found.items())[:1])
    return lead, {name: content for name, content in found.items() if results.sweep and name not in lead}


def _answers(results: Results) -> list[str]:
    """The sentences above the table, the most important first. A search begins with its answer."""
    if found := results.search:
        return [sentence(found), *search.conclusions(found), search.explanation(found)]
    if results.searches:
        return list(map(named_sentence, results.searches))
    if not results.jobs:
        return []
    each = answer_of_each(results.series)
    if len(each) > MOST_ANSWERS:  # the sections of the methods have the others
        return fewest_of_all(results.series) or ["No method avoids a significant loss."]
    return sorted(answers(results.series), key=lambda said: said not in fewest_of_all(results.series))


def _table(results: Results) -> Cells:
    """The same table as in the terminal."""
    if results.search:
        return search.trial_cells(results.search)
    if results.searches:
        return search.answer_cells(results.searches)
    return table_cells(results.series, results.failures, NARROW)


def _each_seed(results: Results) -> Cells | None:
    """The table with a line for each seed, or None if no line of the table has several seeds."""
    if results.search or not seed_note(rows_of(results.series)):
        return None
    return table_cells(results.series, results.failures, unfold=True)


def _exports(results: Results) -> Cells | None:
    """The table of exported files."""
    cells = export_cells(exports_of_series(results.series))
    return cells and Cells(cells.headings, [[cell.replace("\n", ", ") for cell in line] for line in cells.lines])


def _float_tensors(results: Results) -> list[tuple[str, str]]:
    """The weights that stay float in any job, with their reasons."""
    pairs = [pair for job in results.jobs for result in job.results for pair in result.float_tensors.items()]
    return list(dict.fromkeys(pairs))


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
    found: dict[str, Iterable[str]] = {
        "hardware": (job.tags.get("hardware", "") for job in jobs),
        "versions": versions,
        "data": (_data(job.dataset) for job in jobs if job.dataset),
        "float model": (job.tags.get("float_digest", "") for job in jobs),
    }
    where, served = results.tracked
    found["MLflow"] = (f"{where} after `{served}`" if served else where,)
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
