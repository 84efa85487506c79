"""Distributions of weights and activations, with their clipping values."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptq_exp.reporting.plots.style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    RED,
    SMALL,
    TEXT,
    WIDTH,
    canvas,
    save,
    write_note,
    write_title,
)  # fmt: skip

COLUMNS, PANEL, HEADING, GAP = 4, 0.8, 0.46, 0.22  # of small multiples: columns per line, and sizes in inches
MARGIN, NOTE = 0.15, 0.62


@dataclass(frozen=True)
class WeightPanel:
    """The weights of a layer in units of the clipping value alpha, which may differ between channels."""

    layer: str
    edges: list[float]  # of the histogram of the float weights
    density: list[float]  # one value fewer
    levels: list[float]
    level_density: list[float]  # the share of a level's weights divided by its distance to the next level
    alphas: tuple[float, float]  # the smallest and the largest of the channels
    clipped_percent: float
    levels_used: int
    levels_available: int


@dataclass(frozen=True)
class ActivationPanel:
    """The magnitudes of a layer's input on the calibration images."""

    layer: str
    shares: list[float]  # in equal bins from 0 to `limit`
    limit: float
    alpha: float


def weight_density(weights: Any, lows: list[float], highs: list[float], title: str, path: Path) -> None:
    """Density of `weights` (array), with lines at their standard deviation and the ranges of the quantizer.

    `lows` and `highs` are the ends of the ranges: one range, one for each output channel, or none.
    """
    import numpy as np

    values = np.asarray(weights, dtype=float).ravel()
    std, limit = values.std(), float(np.abs([*values, *lows, *highs]).max()) * 1.08
    figure, axes = canvas()
    axes.hist(values, bins=60, density=True, color=BLUE, alpha=0.3, label="weights")
    if std > 0:
        grid = np.linspace(-limit, limit, 400)
        axes.plot(grid, density_estimate(values, grid), color=BLUE, linewidth=2, label="density estimate")
    for sign in (-1, 1):
        label = f"std = {std:.4f}" if sign > 0 else None
        axes.axvline(sign * std, color=ORANGE, linestyle="--", linewidth=2, label=label)
    if highs:
        _ranges(axes, lows, highs, limit)
    axes.set(xlim=(-limit, limit), xlabel="weight", ylabel="density")
    write_title(figure, title)
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])  # room for the legend above the curves
    axes.legend(
        loc="upper center", ncols=2, fontsize=SMALL, framealpha=1, edgecolor="none", columnspacing=1, handlelength=1
    )
    save(figure, path, vector=False)


def _ranges(axes: Any, lows: list[float], highs: list[float], limit: float) -> None:
    """The ends of one range as lines, of the ranges of several channels as short lines; what all clip is shaded."""
    low, high = (
        f"{min(ends, key=abs):.4f}" + f" to {max(ends, key=abs):.4f}" * (len(ends) > 1) for ends in (lows, highs)
    )
    symmetric = all(math.isclose(-first, last, rel_tol=1e-3) for first, last in zip(lows, highs, strict=True))
    name = f"alpha = {high}" if symmetric else f"range: {low}, {high}"
    if len(highs) > 1:
        name = f"alpha of {len(highs)} channels: {high}" if symmetric else f"ranges of {len(highs)} channels"
    for end in lows + highs:
        axes.axvline(end, ymax=1 if len(highs) == 1 else 0.12, color=RED, linewidth=2 if len(highs) == 1 else 1.2)
    axes.plot([], [], color=RED, linewidth=2, label=name)
    axes.axvspan(-limit, min(lows), color=RED, alpha=0.08)
    axes.axvspan(max(highs), limit, color=RED, alpha=0.08)


def density_estimate(values: Any, places: Any) -> Any:
    """The density of `values` (n,) at `places` (m,), with Gaussian kernels of bandwidth std * n^(-1/5).

    The bandwidth is the rule of thumb of Scott 1992, Multivariate Density Estimation. The result equals that of
    scipy.stats.gaussian_kde, whose import takes longer than drawing all figures of a job.
    """
    import numpy as np

    bandwidth = values.std(ddof=1) * len(values) ** -0.2
    heights = [np.exp(-0.5 * ((place - values) / bandwidth) ** 2).mean() for place in places]
    return np.array(heights) / (bandwidth * math.sqrt(2 * math.pi))


def weight_densities(layers: Sequence[WeightPanel], title: str, path: Path) -> None:
    """The float weights of every layer as a histogram, and their quantization levels as stems.

    The unit is the clipping value alpha, which is drawn as a line. Both heights are densities.
    """
    limit = max(1.15, *(max(map(abs, layer.edges)) for layer in layers))
    figure, panels = _panels(len(layers), "weight / alpha")
    for layer, panel in zip(layers, panels, strict=True):
        top = 1.05 * max([*layer.density, *layer.level_density, 1e-12])
        x = [panel.x(edge / limit) for edge in layer.edges]
        panel.steps(x, [value / top for value in layer.density], BLUE)
        stems = [(panel.x(v / limit), d / top) for v, d in zip(layer.levels, layer.level_density, strict=True)]
        panel.lines([panel.x(sign / limit) for sign in (-1, 1)], RED)
        panel.stems(stems, BLACK)  # above the line, where the outermost levels lie
        used = f"uses {layer.levels_used}/{layer.levels_available}"
        about = f"clips {layer.clipped_percent:.2g} %" if layer.clipped_percent >= 0.05 else used
        low, high = layer.alphas
        ranges = f"α {high:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"α {low:.1g}…{high:.2g}"
        panel.heading(layer.layer, f"{ranges}, {about}")
        panel.ticks({panel.x(value / limit): f"{value}" for value in (-1, 0, 1)})
    key = [(BLUE, "float weights"), (BLACK, "quantized levels"), (RED, "clipping value alpha (α)")]
    write_note(
        figure, "Heights: densities, scaled per panel. Above: alpha, and levels used or weights clipped.", below=NOTE
    )
    _finish(figure, panels, title, key, path)


def activation_histograms(layers: Sequence[ActivationPanel], title: str, path: Path) -> None:
    """The magnitudes of every layer's input on the calibration images, on a logarithmic scale, with alpha."""
    figure, panels = _panels(len(layers), "|activation| / maximum")
    floor = -6.0  # one activation in a million
    for layer, panel in zip(layers, panels, strict=True):
        count = len(layer.shares)
        heights = [max(0.0, 1 - math.log10(share) / floor) if share > 0 else 0.0 for share in layer.shares]
        panel.steps([panel.x(2 * edge / count - 1) for edge in range(count + 1)], heights, BLUE)
        place = min(layer.alpha / layer.limit, 1.0)
        panel.lines([panel.x(2 * place - 1)], RED)
        panel.heading(layer.layer, f"α {layer.alpha:.3g}, maximum {layer.limit:.3g}")
        panel.ticks({panel.x(-1): "0", panel.x(0): "0.5", panel.x(1): "1"})
    key = [(BLUE, "calibration images"), (RED, "clipping value alpha (α)")]
    write_note(figure, "Heights: shares of the values, on a logarithmic scale from 1e-6 to 1.", below=NOTE)
    _finish(figure, panels, title, key, path)


class _Panel:
    """A small panel, drawn as shapes on shared axes: twenty separate axes would take ten times as long."""

    def __init__(self, axes: Any, left: float, bottom: float, width: float, lowest: bool):
        self.axes, self.left, self.bottom, self.width, self.lowest = axes, left, bottom, width, lowest
        self.shapes: list[tuple[list[tuple[float, float]], str]] = []
        self.strokes: list[tuple[list[tuple[float, float]], str, float]] = []
        self.strokes.append(([(left, bottom), (left + width, bottom)], GREY, 0.8))

    def x(self, share: float) -> float:
        """The x coordinate of a value between -1 and 1."""
        return self.left + (share + 1) / 2 * self.width

    def steps(self, edges: list[float], heights: list[float], colour: str) -> None:
        """Draw a filled histogram; heights are from 0 to 1."""
        corners = [(edges[0], self.bottom)]
        for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
            corners += [(left, self._y(height)), (right, self._y(height))]
        self.shapes.append(([*corners, (edges[-1], self.bottom)], colour))

    def stems(self, points: list[tuple[float, float]], colour: str) -> None:
        """Draw vertical strokes from the base; many strokes are thinner."""
        width = min(3.0, max(0.4, 40 / max(1, len(points))))
        self.strokes += [([(x, self.bottom), (x, self._y(height))], colour, width) for x, height in points]

    def lines(self, places: list[float], colour: str) -> None:
        """Draw vertical lines from base to top."""
        self.strokes += [([(x, self.bottom), (x, self.bottom + PANEL)], colour, 1.3) for x in places]

    def heading(self, name: str, about: str) -> None:
        """Write two lines of text above the panel."""
        top = self.bottom + PANEL
        self.axes.text(self.left, top + 0.24, name, fontsize=SMALL, fontweight="bold", va="bottom")
        self.axes.text(self.left, top + 0.06, about, fontsize=9, color="#333333", va="bottom")

    def ticks(self, labels: dict[float, str]) -> None:
        """Draw ticks, with labels below the lowest panel of each column."""
        self.strokes += [([(x, self.bottom), (x, self.bottom - 0.04)], GREY, 0.8) for x in labels]
        for x, text in labels.items() if self.lowest else ():
            self.axes.text(x, self.bottom - 0.07, text, fontsize=SMALL, ha="center", va="top")

    def _y(self, height: float) -> float:
        return self.bottom + height * PANEL


def _panels(count: int, label: str) -> tuple[Any, list[_Panel]]:
    """A figure with `count` panels; its axes have the unit inch."""
    lines = math.ceil(count / COLUMNS)
    height = 1.1 + lines * (PANEL + HEADING + GAP) + 0.4
    figure, axes = canvas(height, left=0, right=0, top=0, bottom=0)
    axes.set(xlim=(0, WIDTH), ylim=(0, height))
    axes.axis("off")
    width = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
    axes.text(WIDTH / 2, 0.1, label, fontsize=TEXT, ha="center", va="bottom")
    return figure, list(_places(axes, count, height - 1.0, width))


def _places(axes: Any, count: int, top: float, width: float) -> Iterator[_Panel]:
    for number in range(count):
        line, column = divmod(number, COLUMNS)
        bottom = top - (line + 1) * (PANEL + HEADING) - line * GAP
        yield _Panel(axes, MARGIN + column * (width + GAP), bottom, width, lowest=number + COLUMNS >= count)


def _finish(figure: Any, panels: list[_Panel], title: str, key: list[tuple[str, str]], path: Path) -> None:
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.patches import Patch

    axes = figure.axes[0]
    shapes = [shape for panel in panels for shape in panel.shapes]
    axes.add_collection(
        PolyCollection([corners for corners, _ in shapes], facecolors=[c for _, c in shapes], alpha=0.35)
    )
    strokes = [stroke for panel in panels for stroke in panel.strokes]
    axes.add_collection(
        LineCollection([s[0] for s in strokes], colors=[s[1] for s in strokes], linewidths=[s[2] for s in strokes])
    )
    height = figure.get_size_inches()[1]
    patches = [Patch(color=colour, label=text, alpha=0.35 if colour == BLUE else 1) for colour, text in key]
    axes.legend(
        handles=patches, ncols=len(key), fontsize=SMALL, frameon=False, loc="upper left", handlelength=1.2,
        bbox_to_anchor=(MARGIN / WIDTH, 1 - 0.38 / height), borderaxespad=0, borderpad=0,
    )  # fmt: skip
    write_title(figure, title)
    save(figure, path, vector=False)
