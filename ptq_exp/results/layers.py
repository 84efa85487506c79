"""The per-layer tables of the jobs of a sweep."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from ptq_exp.quantization.layer_report import LayerReport
from ptq_exp.results.records import JobRecord
from ptq_exp.results.series import labels, without_seed

MOST_HEAT_MAPS = 6  # of a sweep
Tables = dict[str, dict[int, list[LayerReport]]]  # by series and quant.bits


def layer_tables(jobs: Sequence[JobRecord]) -> Tables:
    """The per-layer table of each bit width, by series. The numbers of several seeds are averaged."""
    found: dict[str, dict[int, list[tuple[LayerReport, ...]]]] = {}
    for job, label in zip(jobs, labels(jobs), strict=True):
        for result in job.results:
            if result.layers:  # records of the first edition have no layers
                found.setdefault(without_seed(label), {}).setdefault(result.bits, []).append(result.layers)
    return {
        label: {bits: [_mean(lines) for lines in zip(*several, strict=False)] for bits, several in tables.items()}
        for label, tables in found.items()
    }


def heat_maps(jobs: Sequence[JobRecord]) -> dict[str, str]:
    """The name (without extension) of each heat map over all jobs, by series.

    A job with several bit widths draws this figure itself.
    """
    if any(len(job.results) != 1 for job in jobs):
        return {}
    found = [label for label, tables in layer_tables(jobs).items() if len(tables) > 1][:MOST_HEAT_MAPS]
    return {label: "layers" if len(found) == 1 else f"layers_{number + 1}" for number, label in enumerate(found)}


def _mean(lines: tuple[LayerReport, ...]) -> LayerReport:
    first = lines[0]
    if len(lines) == 1:
        return first
    numbers = {
        field.name: [getattr(line, field.name) for line in lines]
        for field in dataclasses.fields(first)
        if isinstance(getattr(first, field.name), float)
    }
    means: dict[str, Any] = {name: statistics.fmean(values) for name, values in numbers.items()}
    means["levels_used"] = statistics.fmean(line.levels_used for line in lines)
    return dataclasses.replace(first, **means)
