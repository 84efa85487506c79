"""Figures with one line per layer: levels and noise, sensitivities, chosen bits."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptq_exp.quantization.layer_report import LayerReport
from ptq_exp.reporting.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    RED,
    SMALL,
    WIDTH,
    add_axes,
    canvas,
    legend,
    margin_for,
    save,
    write_note,
    write_title,
)  # fmt: skip
from ptq_exp.results.series import number

ROW = 0.24  # inches per layer
BELOW = 0.95  # inches for two lines of tick labels and the axis title
LIGHT = "#BBBBBB"  # a bar under its interval
FEW_IMAGES = 1000  # of a test set whose drops are shown in images instead of points


def levels_used(rows: Sequence[LayerReport], title: str, path: Path) -> None:
    """For every layer, the share of the levels that it can use which are used, and the SQNR of its weights."""
    figure, axes = _bars([row.layer for row in rows])
    shares = [100 * row.levels_used / row.most_levels for row in rows]
    colours = [BLUE if share >= 50 else ORANGE for share in shares]
    _coloured(axes, shares, colours, {BLUE: "at least half of the levels", ORANGE: "less than half"})
    for position, (row, share) in enumerate(zip(rows, shares, strict=True)):
        text = f"{number(row.levels_used)} of {row.most_levels}, {_decibels(row.sqnr_db)} dB"
        axes.text(share + 1, position, text, va="center", fontsize=SMALL)
    axes.set(xlim=(0, 150), xlabel="levels used (%)")
    axes.set_xticks([0, 25, 50, 75, 100])
    write_title(figure, title)
    write_note(figure, "Text: levels used, of those that the layer (or a channel) can use; SQNR of the weights.")
    save(figure, path)


def sensitivity_bars(drops: Mapping[str, tuple[float, float, float]], images: int, title: str, path: Path) -> None:
    """Top-1 drop when only one layer is quantized, one bar per layer.

    `drops` holds the drop in points and the ends of its 95 % CI. With few test `images`, the axis counts images.
    """
    figure, axes = _bars(list(drops))
    few = images < FEW_IMAGES
    scale = images / 100 if few else 1.0
    values = [scale * drop for drop, _, _ in drops.values()]
    ends = [[scale * max(0.0, part) for part in (drop - low, high - drop)] for drop, low, high in drops.values()]
    colours = [RED if low > 0 else GREEN if high < 0 else LIGHT for _, low, high in drops.values()]
    _coloured(axes, values, colours, {RED: "loss", GREEN: "gain", LIGHT: "no significant change"})
    look = {"fmt": "none", "ecolor": BLACK, "elinewidth": 1, "capsize": 2}
    axes.errorbar(values, range(len(values)), xerr=list(zip(*ends, strict=True)), **look)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set(xlabel="top-1 drop (images)" if few else "top-1 drop (points)")
    axes.grid(axis="x", alpha=0.3)
    write_title(figure, title)
    write_note(figure, f"Lines: 95 % CI of the drop on {images:,} test images.")
    save(figure, path)


def _coloured(axes: Any, values: list[float], colours: list[str], names: dict[str, str]) -> None:
    """Draw a bar per value, and a legend above the axes with the names of the colours in use."""
    from matplotlib.patches import Patch

    axes.barh(range(len(values)), values, color=colours)
    shown = [Patch(color=colour, label=name) for colour, name in names.items() if colour in colours]
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": len(shown), "frameon": False}
    axes.legend(handles=shown, fontsize=SMALL, borderaxespad=0.1, borderpad=0, handlelength=1, **place)


def layer_heat_map(layers: Mapping[int, Sequence[LayerReport]], title: str, path: Path) -> None:
    """Two heat maps, layer x bits: the SQNR of the weights (dB) and the share of levels used (percent).

    `layers` holds one per-layer table for each value of `quant.bits`.
    """
    from matplotlib.figure import Figure

    widths = sorted(layers)
    names = list(dict.fromkeys(row.layer for bits in widths for row in layers[bits]))
    found = {(row.layer, bits): row for bits in widths for row in layers[bits]}

    def cells(value: Any) -> list[list[float]]:
        return [[value(found[name, bits]) if (name, bits) in found else math.nan for bits in widths] for name in names]

    stored = [_stored(layers[bits], bits) for bits in widths]
    sqnr = cells(lambda row: row.sqnr_db)
    usage = cells(lambda row: 100 * row.levels_used / row.most_levels)
    figure = Figure(figsize=(WIDTH, ROW * len(names) + BELOW + 0.9))
    left, gap = margin_for(names), 0.25
    width = (WIDTH - left - gap - 0.15) / 2
    highest = max([value for line in sqnr for value in line if math.isfinite(value)], default=1.0)
    for position, (values, top, heading) in enumerate(
        [(sqnr, max(highest, 1.0), "SQNR of the weights (dB)"), (usage, 100.0, "levels used (%)")]
    ):
        axes = add_axes(figure, left + position * (width + gap), BELOW, width, ROW * len(names))
        _heat(axes, values, top)
        axes.set_xticks(range(len(widths)), stored)
        axes.set_xlabel("bits per weight (including sign)" + ("\n(quant.bits)" if "(" in "".join(stored) else ""))
        axes.set_title(heading, fontsize=12)
        axes.set_yticks(range(len(names)), names if position == 0 else [], fontsize=SMALL)
        axes.tick_params(length=0)
    write_title(figure, title)
    save(figure, path)


def _stored(rows: Sequence[LayerReport], bits: int) -> str:
    """The mean stored bits of the layers, with `quant.bits` below if it differs."""
    counts = [row.weights for row in rows]
    mean = number(sum(row.stored_bits * count for row, count in zip(rows, counts, strict=True)) / sum(counts))
    return mean if mean == str(bits) else f"{mean}\n({bits})"


def _heat(axes: Any, values: list[list[float]], top: float) -> None:
    """Draw cells from dark (0, strongly degraded) to light (`top`), with their numbers."""
    shown = [[min(value, top) for value in line] for line in values]
    axes.imshow(shown, cmap="cividis", vmin=0, vmax=top, aspect="auto")
    axes.spines[:].set_visible(False)
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if not math.isnan(value):
                colour = "white" if value < 0.55 * top else "black"
                axes.text(x, y, _decibels(value, 0), ha="center", va="center", fontsize=SMALL, color=colour)


def mixed_precision(
    curve: list[dict[str, float]], bits_mean: float, chosen: dict[str, int], title: str, path: Path
) -> None:
    """The best plans of mixed precision: summed sensitivity against mean bits, with the chosen plan."""
    figure, axes = canvas(left=0.9)
    bits, cost = [point["bits_mean"] for point in curve], [max(point["sensitivity"], 1e-9) for point in curve]
    axes.semilogy(bits, cost, marker="o", color=BLUE, linewidth=2, label="best plan per budget")
    axes.axvline(bits_mean, color=RED, linestyle="--", linewidth=2, label=f"this run: {bits_mean:.2f} bits per weight")
    counts = {width: list(chosen.values()).count(width) for width in sorted(set(chosen.values()))}
    text = "\n".join(f"{width} bits: {count} layers" for width, count in counts.items())
    axes.text(0.98, 0.76, text, transform=axes.transAxes, ha="right", va="top", fontsize=SMALL)
    axes.set(xlabel="mean bits per weight (including sign)", ylabel="summed KL divergence (nats)")
    axes.grid(alpha=0.3)
    write_title(figure, title)
    legend(axes)
    save(figure, path)


def _bars(layers: list[str]) -> Any:
    """A figure for one horizontal bar per layer, with the first layer on top, and room for a note and a legend."""
    figure, axes = canvas(1.55 + ROW * len(layers), left=margin_for(layers), top=0.9)
    axes.set_yticks(range(len(layers)), layers, fontsize=SMALL)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def _decibels(value: float | None, digits: int = 1) -> str:
    return "∞" if value is None or math.isinf(value) else f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no "-0"
