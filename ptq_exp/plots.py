"""Figures from plain data. matplotlib is imported inside, and never through pyplot: no global state, no display."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito 2008: eight colours that stay apart under every common colour blindness.
BLACK, ORANGE, BLUE, GREEN, RED = "#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00"
SERIES = [BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", BLACK]


def weight_density(weights: Any, alpha: float | None, title: str, path: Path) -> None:
    """Density of `weights` (array) with their standard deviation and, if there is one, the clipping value drawn in."""
    import numpy as np
    from scipy.stats import gaussian_kde

    values = np.asarray(weights, dtype=float).ravel()
    std, limit = values.std(), max(np.abs(values).max(), alpha or 0.0) * 1.08
    figure, axes = _figure()
    axes.hist(values, bins=60, density=True, color=BLUE, alpha=0.3, label="weights")
    if std > 0:
        grid = np.linspace(-limit, limit, 400)
        axes.plot(grid, gaussian_kde(values)(grid), color=BLUE, linewidth=2, label="density estimate")
    for sign in (-1, 1):
        axes.axvline(sign * std, color=ORANGE, linestyle="--", label=f"std = {std:.4f}" if sign > 0 else None)
        if alpha is not None:
            label = f"clipped at alpha = {alpha:.4f}" if sign > 0 else None
            axes.axvline(sign * alpha, color=RED, linewidth=2, label=label)
            axes.axvspan(sign * alpha, sign * limit, color=RED, alpha=0.08)
    axes.set(xlim=(-limit, limit), xlabel="weight", ylabel="density", title=title)
    axes.legend(framealpha=1, edgecolor="none", fontsize=9)
    _save(figure, path)


def accuracy_against_bits(series: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Top-1 with its 95 % interval against the bit width: one line a series, and the float network's as a line.

    Every row needs `bits`, `top1`, `top1_ci_low`, `top1_ci_high` and `top1_float`, all but bits in percent.
    """
    figure, axes = _figure()
    widths = sorted({row["bits"] for rows in series.values() for row in rows})
    for position, (label, rows) in enumerate(series.items()):
        rows = sorted(rows, key=lambda row: row["bits"])
        bits, top1 = [row["bits"] for row in rows], [row["top1"] for row in rows]
        below = [max(0, row["top1"] - row["top1_ci_low"]) for row in rows]
        above = [max(0, row["top1_ci_high"] - row["top1"]) for row in rows]
        colour = SERIES[position % len(SERIES)]
        axes.errorbar(bits, top1, yerr=[below, above], marker="o", capsize=3, color=colour, label=label or "quantized")
    floats = sorted({round(row["top1_float"], 4) for rows in series.values() for row in rows})
    for value in floats:
        axes.axhline(value, color=BLACK, linestyle="--", linewidth=1, label=f"float ({value:.2f} %)")
    axes.set(xlabel="quant.bits", ylabel="top-1 accuracy (%)", title="Accuracy against bit width")
    axes.set_xticks(widths)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(framealpha=1, edgecolor="none", fontsize=9)
    _save(figure, path)


def levels_used(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """For every layer the share of its levels that occur, and the SQNR of its weights.

    Every row needs `layer`, `levels_used`, `levels_available` and `sqnr_db`.
    """
    figure, axes = _figure(height=1.5 + 0.24 * len(rows))
    shares = [100 * row["levels_used"] / row["levels_available"] for row in rows]
    axes.barh(range(len(rows)), shares, color=[BLUE if share >= 50 else ORANGE for share in shares])
    for position, (row, share) in enumerate(zip(rows, shares, strict=True)):
        text = f"{row['levels_used']} of {row['levels_available']}, {row['sqnr_db']:.1f} dB"
        axes.text(share + 1, position, text, va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row["layer"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 130), xlabel="levels used (percent of those available), and SQNR of the weights", title=title)
    axes.set_xticks([0, 25, 50, 75, 100])
    _save(figure, path)


def sensitivity_bars(layers: list[str], drops: list[float], title: str, path: Path) -> None:
    """Top-1 drop in points (one bar a layer) when only this layer is quantized."""
    figure, axes = _figure(height=1.5 + 0.22 * len(layers))
    axes.barh(range(len(layers)), drops, color=[RED if drop > 0 else GREEN for drop in drops])
    axes.set_yticks(range(len(layers)), layers, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set(xlabel="top-1 drop (points)", title=title)
    _save(figure, path)


def pareto(curve: list[dict[str, float]], bits_mean: float, chosen: dict[str, int], path: Path) -> None:
    """The best plans of mixed precision, their summed sensitivity against their mean bits, and the chosen plan."""
    figure, axes = _figure()
    bits, cost = [point["bits_mean"] for point in curve], [max(point["sensitivity"], 1e-9) for point in curve]
    axes.semilogy(bits, cost, marker="o", color=BLUE, label="best plan for each budget")
    axes.axvline(bits_mean, color=RED, linestyle="--", label=f"this run: {bits_mean:.2f} bits a weight")
    counts = {width: list(chosen.values()).count(width) for width in sorted(set(chosen.values()))}
    text = "\n".join(f"{width} bits: {count} layers" for width, count in counts.items())
    axes.text(0.98, 0.70, text, transform=axes.transAxes, ha="right", va="top", fontsize=9)
    axes.set(xlabel="mean bits a weight, sign included", ylabel="summed divergence (nats)", title="Mixed precision")
    axes.grid(alpha=0.3)
    axes.legend(framealpha=1, edgecolor="none", fontsize=9)
    _save(figure, path)


def _figure(height: float = 4.5) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: "Figure", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, pil_kwargs={"compress_level": 1})  # the best compression takes as long as drawing
