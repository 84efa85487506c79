"""The page that compares two sweeps or jobs side by side."""

import tempfile
from pathlib import Path

from ptq_exp.reporting import plots
from ptq_exp.reporting.comparisons import WORDS, compared, comparison_cells, comparison_notes
from ptq_exp.reporting.html.content import NARROW, Results, repeat_command, settings, templates
from ptq_exp.reporting.html.pictures import Pictures, captioned, images
from ptq_exp.reporting.table import JOB, VERDICT, Cells, table_cells
from ptq_exp.results.series import Series, answers, seed_groups

OTHER_IMAGES = "These sweeps were measured on different images: compare the drops, not the accuracies."


def comparison(first: Results, second: Results, unfold: bool = False) -> str:
    """Two sweeps side by side: tables, paired differences, curves in one figure, and the settings that differ."""
    both = {f"A: {first.title}": first, f"B: {second.title}": second}
    curves = {
        f"{name}: {label}" if label else name: rows
        for name, results in both.items()
        for label, rows in seed_groups(results.series).items()
    }
    data = [{job.tags.get("data_fingerprint") for job in results.jobs} for results in both.values()]
    found = compared(first.jobs, second.jobs, unfold)
    page: str = (
        templates()
        .get_template("comparison.html.j2")
        .render(
            title=" and ".join(both),
            warnings=[OTHER_IMAGES] if data[0] != data[1] else [],
            sides=[_side(name, results, unfold) for name, results in both.items()],
            words=(VERDICT.replace(" ", "\n"),),
            wide=(JOB,),
            compared=comparison_cells(found.pairs),
            compared_words=WORDS,
            compared_notes=comparison_notes(found.pairs) if found.pairs else [found.nothing],
            figures=captioned(draw(curves)),
            differing=_differing(first, second, list(both)),
        )
    )
    return page


def _side(name: str, results: Results, unfold: bool) -> dict[str, object]:
    return {
        "name": name,
        "answers": answers(results.series),
        "table": table_cells(results.series, results.failures, NARROW, unfold),
        "command": repeat_command(results) if results.command else "",
    }


def _differing(first: Results, second: Results, names: list[str]) -> Cells:
    """The settings that differ between the two."""
    ours, theirs = settings(first.jobs), settings(second.jobs)
    lines = [
        [key, ", ".join(ours.get(key, [])), ", ".join(theirs.get(key, []))]
        for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)
    ]  # fmt: skip
    return Cells(["key", *names], lines)


def draw(series: Series) -> Pictures:
    """The figures of accuracy against bits and against size."""
    with tempfile.TemporaryDirectory() as folder:
        plots.accuracy_against_bits(series, Path(folder) / "accuracy_against_bits.svg")
        plots.accuracy_against_size(series, Path(folder) / "accuracy_against_size.svg")
        return images(Path(folder))
