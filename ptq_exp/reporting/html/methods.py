"""The sections of a report that fold: for each method its answer, diagnoses, layers and figures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ptq_exp.quantization.layer_report import LayerReport
from ptq_exp.reporting.html.pictures import Pictures, captioned, images
from ptq_exp.reporting.table import BITS, Cells
from ptq_exp.results.layers import heat_maps, layer_tables
from ptq_exp.results.records import BitWidthResult, JobRecord
from ptq_exp.results.series import answer_of_each, as_series, labels, number, width, without_seed

MOST_JOBS = 12  # jobs whose figures a report shows; the figures of the others are in their runs
LAYER = ["layer", BITS, "shape", "weights", "alpha", "clipped %", "levels used", "levels", "SQNR dB", "output SQNR dB"]
OF_ACTIVATIONS = ["activation bits", "activation alpha"]
WORDS = ("layer", "shape")  # columns of text


@dataclass
class Method:
    """One folding section. Several seeds of a method share a section."""

    title: str
    answer: str
    diagnoses: Cells
    layers: Cells | None  # None without per-layer tables
    pictures: Pictures = field(default_factory=dict)  # over all bit widths, by caption
    jobs: dict[str, Pictures] = field(default_factory=dict)  # the figures of each job, by what distinguishes it


def methods(jobs: Sequence[JobRecord], drawn: Pictures, shown: set[bytes]) -> list[Method]:
    """The sections. `drawn` contains the figures over all jobs. A figure in `shown` is not repeated."""
    names, found = labels(jobs) if len(jobs) > 1 else [""] * len(jobs), {}
    tables, maps = layer_tables(jobs), heat_maps(jobs)
    by_stem = {name.rpartition(".")[0]: (name, content) for name, content in drawn.items()}
    for label, answer in answer_of_each(as_series(jobs, names)).items():
        own = [(name, job) for name, job in zip(names, jobs, strict=True) if without_seed(name) == label]
        title = label or " ".join(own[0][1].method)
        lines = diagnoses([result for _, job in own for result in job.results])
        found[label] = Method(title, answer, lines, layer_cells(tables.get(label, {})))
        if label in maps and maps[label] in by_stem:
            _, content = by_stem[maps[label]]
            found[label].pictures = captioned({"layers.svg": content})
    for name, job in list(zip(names, jobs, strict=True))[:MOST_JOBS]:
        method = found[without_seed(name)]
        if pictures := _new(images(job.artifacts), shown, without=("levels",) if method.pictures else ()):
            widths = ", ".join(map(width, job.results))
            method.jobs[f"{name}: {widths}" if name != without_seed(name) else widths] = captioned(pictures)
    return list(found.values())


def _new(pictures: Pictures, shown: set[bytes], without: tuple[str, ...]) -> Pictures:
    """The pictures that are not in the page yet. The heat map of all widths replaces the levels of each width."""
    fresh = {
        name: content
        for name, content in pictures.items()
        if content not in shown and not (without and name.startswith(without))
    }
    shown.update(fresh.values())
    return fresh


def diagnoses(results: Sequence[BitWidthResult]) -> Cells:
    """The diagnosis of each bit width, in full."""
    return Cells([BITS, "diagnosis"], [[width(result), result.diagnosis] for result in results])


def layer_cells(tables: dict[int, list[LayerReport]]) -> Cells | None:
    """One line per layer and bit width, or None if there is no layer."""
    rows = [row for _, layers in sorted(tables.items()) for row in layers]
    if not rows:
        return None
    activations = any(row.act_bits is not None for row in rows)
    return Cells(LAYER + (OF_ACTIVATIONS if activations else []), [_layer(row, activations) for row in rows])


def _layer(row: LayerReport, activations: bool) -> list[str]:
    cells = [
        row.layer, number(row.stored_bits), row.shape, f"{row.weights:,}", f"{row.alpha:.3g}",
        f"{row.clipped_percent:.1f}", number(row.levels_used), str(row.levels_available), _decibels(row.sqnr_db),
        _decibels(row.output_sqnr_db),
    ]  # fmt: skip
    if activations:
        alpha = "" if row.act_alpha is None else f"{row.act_alpha:.3g}"
        cells += ["" if row.act_bits is None else str(row.act_bits), alpha]
    return cells


def _decibels(value: float | None) -> str:
    return "∞" if value is None or math.isinf(value) else f"{value:.1f}"
