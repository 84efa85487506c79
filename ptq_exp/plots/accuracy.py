"""Accuracy against what it costs: bits, and bytes."""

import statistics
from pathlib import Path
from typing import Any

from ptq_exp.plots.style import (
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
    write_title,
)

Rows = list[dict[str, Any]]
CLOSE = 6.0  # points: where much more is lost somewhere, what is this close to the float network is drawn again


def accuracy_against_bits(series: dict[str, Rows], path: Path, title: str = "Accuracy against bit width") -> None:
    """Top-1 against the bit width: one line a series, and the float network's as a dashed line.

    Every row needs `bits`, `top1`, `top1_ci_low`, `top1_ci_high` and `top1_float`, all but bits in percent. A series
    with one row for each bit width is drawn with its 95 % intervals, one with several (of different seeds) as their
    mean, with a band of one standard deviation. Where a width loses a lot, a second panel shows the others close up.
    """
    rows = [row for found in series.values() for row in found]
    level = _mean(rows, "top1_float")
    close = {row["bits"] for row in rows if row["top1"] > level - CLOSE}
    zoomed = len(close) > 1 and min(row["top1"] for row in rows) < level - 3 * CLOSE
    figure, axes = canvas(7.2 if zoomed else 4.5, bottom=3.3 if zoomed else 0.65)
    _draw_series(axes, series)
    _float_lines(axes, series)
    axes.set(xlabel="bits a weight (quant.bits)", ylabel="top-1 accuracy (%)")
    legend(axes)
    if zoomed:
        below = add_axes(figure, 0.8, 0.6, WIDTH - 1.0, 1.85)
        _draw_series(below, series)
        _float_lines(below, series)
        below.set(xlabel="the same, close to the float network", ylabel="top-1 (%)")
        below.set_ylim(level - CLOSE, level + CLOSE / 3)
    for part in figure.axes:
        part.set_xticks(sorted({row["bits"] for row in rows}))
        part.grid(axis="y", alpha=0.3)
    write_title(figure, title)
    save(figure, path)


def _draw_series(axes: Any, series: dict[str, Rows]) -> None:
    for position, (label, rows) in enumerate(series.items()):
        look = _look(position)
        groups = _by_bits(rows)
        shift = (position - (len(series) - 1) / 2) * min(0.07, 0.4 / len(series))  # so that intervals do not hide
        bits, means = [width + shift for width in groups], [_mean(group, "top1") for group in groups.values()]
        seeds = max(map(len, groups.values()))
        if seeds > 1:
            spread = [_std(group) for group in groups.values()]
            low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
            axes.fill_between(bits, low, high, color=look["color"], alpha=0.2, linewidth=0)
            below = above = spread
            label = f"{label or 'quantized'}, mean of {seeds} seeds ± std"
        else:
            (found,) = zip(*groups.values(), strict=True)
            below = [max(0, row["top1"] - row["top1_ci_low"]) for row in found]
            above = [max(0, row["top1_ci_high"] - row["top1"]) for row in found]
            label = f"{label or 'quantized'}, 95 % interval"
        axes.errorbar(bits, means, yerr=[below, above], capsize=4, label=shorten(label, 72), **look)


def accuracy_against_size(series: dict[str, Rows], path: Path, title: str = "Accuracy against size") -> None:
    """Top-1 (percent) against the packed size (kB): a point a bit width, those that no other beats joined by a line.

    Every row needs `size_bytes` besides what `accuracy_against_bits` needs. Several seeds are one point, their mean.
    """
    figure, axes = canvas()
    points = []
    for position, (label, rows) in enumerate(series.items()):
        groups = _by_bits(rows)
        here = [(_mean(group, "size_bytes") / 1000, _mean(group, "top1"), bits) for bits, group in groups.items()]
        points += here
        look = _look(position) | {"linestyle": "none", "markersize": 8}
        axes.plot(*zip(*[point[:2] for point in here], strict=True), label=shorten(label or "quantized", 72), **look)
    front = pareto_front(points)
    axes.plot([p[0] for p in front], [p[1] for p in front], color=GREY, linewidth=1.5, zorder=0, label="Pareto front")
    for size, top1, bits in front:
        axes.annotate(f"{bits} bits", (size, top1), xytext=(6, -13), textcoords="offset points", fontsize=SMALL)
    _float_lines(axes, series, with_size=True)
    axes.margins(x=0.1, y=0.12)
    axes.set(xlabel="size of the packed network (kB)", ylabel="top-1 accuracy (%)")
    axes.grid(alpha=0.3)
    write_title(figure, title)
    legend(axes)
    save(figure, path)


def pareto_front(points: list[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """Of (size, accuracy, bits), ascending, those that no smaller or equally large network reaches in accuracy."""
    front: list[tuple[float, float, int]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def _look(position: int) -> dict[str, Any]:
    """Colour and marker of a series; markers go on where the colours begin again."""
    marker = MARKERS[(position + position // len(SERIES)) % len(MARKERS)]
    return {"color": SERIES[position % len(SERIES)], "marker": marker, "linewidth": 2, "markersize": 6}


def _by_bits(rows: Rows) -> dict[int, Rows]:
    return {bits: [row for row in rows if row["bits"] == bits] for bits in sorted({row["bits"] for row in rows})}


def _mean(rows: Rows, key: str) -> float:
    return statistics.mean(row[key] for row in rows)


def _std(rows: Rows) -> float:
    return statistics.stdev(row["top1"] for row in rows) if len(rows) > 1 else 0.0


def _float_lines(axes: Any, series: dict[str, Rows], with_size: bool = False) -> None:
    """The float networks: one black line, or one in each series' colour where they differ."""
    floats = [round(_mean(rows, "top1_float"), 2) for rows in series.values()]
    several = len(set(floats)) > 1
    size = f", {next(iter(series.values()))[0]['size_bytes_float'] / 1000:.0f} kB" if with_size else ""
    for position, value in enumerate(floats if several else floats[:1]):
        colour = SERIES[position % len(SERIES)] if several else BLACK
        axes.axhline(value, color=colour, linestyle="--", linewidth=1.5, zorder=1)
    text = "float network of the series" if several else f"float ({floats[0]:.2f} %{size})"
    axes.plot([], [], color=GREY if several else BLACK, linestyle="--", linewidth=1.5, label=text)
