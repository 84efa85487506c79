"""Accuracy against stored bits and against size in bytes."""

import statistics
from pathlib import Path
from typing import Any

from ptq_exp.reporting.plots.labels import Labelled, label_points
from ptq_exp.reporting.plots.style import (
    BLACK,
    GREY,
    MARKERS,
    SERIES,
    SMALL,
    WIDTH,
    add_axes,
    canvas,
    legend,
    save,
    shorten,
    write_note,
    write_title,
)
from ptq_exp.results.records import BitWidthResult
from ptq_exp.results.series import Series, nominal_width, number

Results = list[BitWidthResult]
STORED = "bits per weight (including sign)"
LABEL_LETTERS = 72
MOST_TICKS = 24
CLOSE = 6.0  # points below the float network that the enlarged panel shows


def accuracy_against_bits(series: Series, path: Path, title: str = "Accuracy against bits per weight") -> None:
    """Top-1 against the stored bits per weight: one line per series, and a dashed line for the float network.

    Every result needs `bits`, `bits_mean` (stored, including sign), `top1`, `top1_ci_low`, `top1_ci_high` and
    `top1_float`, the last four in percent. A series with one result per bit width is drawn with 95 % CIs. A series with
    several results per bit width (from different seeds) is drawn as their mean, with a band of one standard deviation.
    If the loss at some bit width is large, a second panel enlarges the region near the float network.
    """
    level, zoomed = _near_float(series)
    figure, axes = canvas(7.2 if zoomed else 4.5, bottom=3.3 if zoomed else 0.65)
    _draw_series(axes, series)
    _float_lines(axes, series)
    axes.set(xlabel=STORED, ylabel="top-1 accuracy (%)")
    legend(axes)
    if zoomed:
        below = add_axes(figure, 0.8, 0.6, WIDTH - 1.0, 1.85)
        _draw_series(below, series)
        _float_lines(below, series)
        below.set(xlabel=STORED, ylabel="top-1 (%)")
        below.set_title("enlarged near the float network", fontsize=SMALL, loc="left")
        below.set_ylim(level - CLOSE, level + CLOSE / 3)
    for part in figure.axes:
        part.set_xticks(*_ticks([_mean(group, "bits_mean") for found in series.values() for group in _by_bits(found)]))
        part.grid(axis="y", alpha=0.3)
    write_title(figure, title)
    save(figure, path)


def _near_float(series: Series) -> tuple[float, bool]:
    """The top-1 of the float network, and whether some results lose so much that the others need an enlarged scale."""
    rows = [row for found in series.values() for row in found]
    level = _mean(rows, "top1_float")
    close = {row.bits_mean for row in rows if row.top1 > level - CLOSE}
    return level, len(close) > 1 and min(row.top1 for row in rows) < level - 3 * CLOSE


def _draw_series(axes: Any, series: Series) -> None:
    for position, (label, rows) in enumerate(series.items()):
        look = _look(position)
        groups = _by_bits(rows)
        shift = (position - (len(series) - 1) / 2) * min(
            0.07, 0.4 / len(series)
        )  # so that the intervals do not overlap
        bits, means = ([_mean(group, key) for group in groups] for key in ("bits_mean", "top1"))
        bits = [width + shift for width in bits]
        seeds = max(map(len, groups))
        name = _name(label, groups)
        if seeds > 1:
            spread = [_std(group) for group in groups]
            low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
            axes.fill_between(bits, low, high, color=look["color"], alpha=0.2, linewidth=0)
            below = above = spread
            name = f"{name}, mean of {seeds} seeds ± std"
        else:
            (found,) = zip(*groups, strict=True)
            below = [max(0, row.top1 - row.top1_ci_low) for row in found]
            above = [max(0, row.top1_ci_high - row.top1) for row in found]
            name = f"{name}, 95 % CI"
        axes.errorbar(bits, means, yerr=[below, above], capsize=4, label=shorten(name, LABEL_LETTERS), **look)


def accuracy_against_size(series: Series, path: Path, title: str = "Accuracy against size") -> None:
    """Top-1 (percent) against the packed size (kB): one point per bit width, and the Pareto front as a line.

    Every result needs `size_bytes` in addition to what `accuracy_against_bits` needs. Several seeds are drawn as one
    point, their mean. Results that lose so much that the others would be indistinguishable are not shown.
    """
    figure, axes = canvas(top=0.75)
    points: list[Labelled] = []
    level, zoomed = _near_float(series)
    lowest, hidden = level - CLOSE if zoomed else 0.0, 0
    for position, (label, rows) in enumerate(series.items()):
        groups = _by_bits(rows)
        look = _look(position) | {"linestyle": "none", "markersize": 8}
        here = [_labelled(group, look["color"]) for group in groups]
        shown = [point for point in here if point.y >= lowest]
        points, hidden = points + shown, hidden + len(here) - len(shown)
        label = shorten(_name(label, groups), LABEL_LETTERS)
        if shown:
            axes.plot([point.x for point in shown], [point.y for point in shown], label=label, **look)
    front = pareto_front([(point.x, point.y) for point in points])
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=GREY, linewidth=1.5, zorder=0, label="Pareto front")
    if hidden:
        which = "networks are" if hidden > 1 else "network is"
        write_note(figure, f"{hidden} {which} not shown: more than {CLOSE:g} points below float.")
    _float_lines(axes, series, with_size=True)
    axes.margins(x=0.1, y=0.12)
    axes.set(xlabel="size of the packed network (kB)", ylabel="top-1 accuracy (%)")
    axes.grid(alpha=0.3)
    write_title(figure, title)
    legend(axes, below=True)
    label_points(axes, sorted(points, key=lambda point: -point.y), [level])
    save(figure, path)


def _labelled(group: Results, colour: str) -> Labelled:
    top1 = _mean(group, "top1")
    text = f"{number(_mean(group, 'bits_mean'))} bits"
    return Labelled(text, _mean(group, "size_bytes") / 1000, top1, top1, top1, colour=colour)


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (size, accuracy) whose accuracy no network of the same or a smaller size reaches, sorted by size."""
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def _look(position: int) -> dict[str, Any]:
    """Colour and marker of a series. When the colours repeat, the markers shift, so that combinations stay distinct."""
    marker = MARKERS[(position + position // len(SERIES)) % len(MARKERS)]
    return {"color": SERIES[position % len(SERIES)], "marker": marker, "linewidth": 2, "markersize": 6}


def _by_bits(rows: Results) -> list[Results]:
    """The results of each bit width, fewest stored bits first. A group has one result per seed."""
    groups: dict[int, Results] = {}
    for row in sorted(rows, key=lambda row: (row.bits_mean, row.bits)):
        groups.setdefault(row.bits, []).append(row)
    return list(groups.values())


def _name(label: str, groups: list[Results]) -> str:
    """The name of a series in the legend, with `quant.bits` if the stored bits differ, for example by the sign."""
    rows = [group[0] for group in groups]
    nominal = ",".join(str(row.bits) for row in rows) if any(map(nominal_width, rows)) else ""
    return (label or "quantized") + (f" (quant.bits={nominal})" if nominal else "")


def _ticks(places: list[float]) -> tuple[list[float], list[str]]:
    """Ticks at the widths drawn, far enough apart that their labels do not overlap."""
    room = (max(places) - min(places)) / MOST_TICKS
    kept: list[float] = []
    for place in sorted(set(places)):
        if not kept or place - kept[-1] >= room:
            kept.append(place)
    return kept, list(map(number, kept))


def _mean(rows: Results, key: str) -> float:
    return statistics.mean(getattr(row, key) for row in rows)


def _std(rows: Results) -> float:
    return statistics.stdev(row.top1 for row in rows) if len(rows) > 1 else 0.0


def _float_lines(axes: Any, series: Series, with_size: bool = False) -> None:
    """The float networks: one black line, or one line in the colour of each series if they differ."""
    floats = [_mean(rows, "top1_float") for rows in series.values()]
    several = len({round(value, 2) for value in floats}) > 1
    size = f", {next(iter(series.values()))[0].size_bytes_float / 1000:.0f} kB" if with_size else ""
    for position, value in enumerate(floats if several else floats[:1]):
        colour = SERIES[position % len(SERIES)] if several else BLACK
        axes.axhline(value, color=colour, linestyle="--", linewidth=1.5, zorder=1)
    text = "float network of each series" if several else f"float ({floats[0]:.2f} %{size})"
    axes.plot([], [], color=GREY if several else BLACK, linestyle="--", linewidth=1.5, label=text)
