"""The trials of a search: accuracy against size and against the bits of the activations, with the margin."""

import itertools
from pathlib import Path
from typing import Any

from ptq_exp.reporting.plots.accuracy import pareto_front
from ptq_exp.reporting.plots.labels import Labelled, label_points
from ptq_exp.reporting.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SKY,
    SMALL,
    WIDTH,
    add_axes,
    canvas,
    save,
    write_note,
    write_title,
)
from ptq_exp.results.records import BRIEF, CALIBRATED, LEARNED, NEAREST, SearchRecord, TrialResult
from ptq_exp.results.series import stored_width

WAYS = {
    NEAREST: (ORANGE, "o", "rounded to nearest"),
    BRIEF: (SKY, "^", "learned briefly"),
    CALIBRATED: (GREEN, "D", "activations calibrated"),
    LEARNED: (BLUE, "s", "learned"),
}
BELOW = 4.0  # margins below the float network that are drawn
RING = {"marker": "o", "markersize": 15, "fillstyle": "none", "markeredgewidth": 2, "linestyle": "none"}
PANEL, LEGEND, GAP, TOP = 2.9, 0.7, 0.7, 0.75  # inches


def search_trials(record: SearchRecord, path: Path) -> None:
    """Top-1 (percent) against size (kB) and, if activations were searched, against their bits.

    Every trial has the 95 % CI of its drop. A ring marks the network that was found.
    """
    activations = [found for found in record.trials if found.trial.axis == "activations"]
    others = [found for found in record.trials if found.trial.axis != "activations" or found is record.best]
    panels = [(others, _size, "size of the packed network (kB)")] if others else []
    panels += [(activations, _act_bits, "bits of the activations")] if activations else []
    height = TOP + LEGEND + len(panels) * (PANEL + GAP)
    figure, first = canvas(height, top=TOP, bottom=height - TOP - PANEL)
    every = [first]
    if len(panels) > 1:
        every.append(add_axes(figure, 0.8, LEGEND + GAP, WIDTH - 1.0, PANEL))
    for axes, (trials, position, label) in zip(every, panels, strict=True):
        _panel(axes, record, trials, position, label)
    _legend(first, every[-1])
    write_title(figure, record.title)
    write_note(figure, "Vertical lines: 95 % CI of the drop.")
    save(figure, path)


def _panel(axes: Any, record: SearchRecord, trials: list[TrialResult], position: Any, label: str) -> None:
    level = trials[0].result.top1_float
    shown = [found for found in trials if found.result.top1 >= level - BELOW * record.max_drop]
    for how, mixed in itertools.product(WAYS, (False, True)):
        here = [found for found in shown if found.trial.how == how and _mixed(found) is mixed]
        results = [found.result for found in here]
        low = [max(0.0, result.top1_drop_ci_high - result.top1_drop) for result in results]
        high = [max(0.0, result.top1_drop - result.top1_drop_ci_low) for result in results]
        colour, marker, name = WAYS[how]
        look = {"color": colour, "marker": marker, "linestyle": "none", "capsize": 3}
        look |= {"markerfacecolor": "white", "label": f"{name}, mixed"} if mixed else {"label": name}
        axes.errorbar(list(map(position, here)), [result.top1 for result in results], yerr=[low, high], **look)
    if position is not _size:
        axes.invert_xaxis()
        axes.set_xticks(sorted({position(found) for found in trials}))
    best = [found for found in shown if found is record.best]
    axes.plot(
        [position(found) for found in best], [found.result.top1 for found in best], color=RED, label="found", **RING
    )
    axes.axhline(level, color=BLACK, linestyle="--", linewidth=1.5, zorder=1, label=f"float ({level:.2f} %)")
    axes.axhline(level - record.max_drop, color=RED, linewidth=1.5, zorder=1, label=f"margin ({record.max_drop:g})")
    if hidden := len(trials) - len(shown):
        note = f"{hidden} trial{'s' * (hidden > 1)} below"
        axes.text(0.99, 0.02, note, transform=axes.transAxes, ha="right", va="bottom", fontsize=SMALL)
    axes.set(xlabel=label, ylabel="top-1 accuracy (%)")
    axes.margins(x=0.1, y=0.12)
    axes.grid(alpha=0.3)
    if position is _size:
        _name_points(axes, record, shown)


def _name_points(axes: Any, record: SearchRecord, shown: list[TrialResult]) -> None:
    """Draw the Pareto front and label the points: first the network found, then one width for all, then mixed ones."""
    front = pareto_front([(_size(found), found.result.top1) for found in shown])
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=GREY, linewidth=1, zorder=0, label="Pareto front")
    by_rank = sorted(shown, key=lambda found: (found is not record.best, _mixed(found), _size(found)))
    points = []
    for found in by_rank:
        level = found.result.top1 + found.result.top1_drop
        low, high = level - found.result.top1_drop_ci_high, level - found.result.top1_drop_ci_low
        points.append(Labelled(_name(found), _size(found), found.result.top1, low, high, found is record.best))
    level = shown[0].result.top1_float if shown else 0.0
    label_points(axes, points, [level, level - record.max_drop])


def _legend(first: Any, last: Any) -> None:
    """One legend below the last panel, with the entries of both that have points."""
    found: dict[str, Any] = {}
    for axes in (first, last):
        handles, names = axes.get_legend_handles_labels()
        found |= {name: handle for handle, name in zip(handles, names, strict=True) if _drawn(handle)}
    place = {"loc": "upper left", "bbox_to_anchor": (0, -0.62 / PANEL), "ncols": 3, "frameon": False}
    last.legend(list(found.values()), list(found), fontsize=SMALL, borderaxespad=0, **place)


def _drawn(handle: Any) -> bool:
    line = handle[0] if isinstance(handle, tuple) else handle  # an errorbar is a tuple of artists
    return len(line.get_xdata()) > 0


def _mixed(found: TrialResult) -> bool:
    return found.trial.axis == "mixed"


def _size(found: TrialResult) -> float:
    return found.result.size_bytes / 1000


def _act_bits(found: TrialResult) -> float:
    return float(found.result.act_bits or 0)


def _name(found: TrialResult) -> str:
    act_bits = found.result.act_bits
    return f"W{stored_width(found.result)}" + (f"A{act_bits}" if act_bits is not None else "")
