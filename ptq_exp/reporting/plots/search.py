"""The trials of a search: accuracy against size, with the margin."""

from pathlib import Path

from ptq_exp.reporting.plots.accuracy import pareto_front
from ptq_exp.reporting.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SMALL,
    canvas,
    legend,
    save,
    write_title,
)
from ptq_exp.results.records import CALIBRATED, LEARNED, NEAREST, SearchRecord, TrialResult
from ptq_exp.results.series import stored_width

WAYS = {
    NEAREST: (ORANGE, "o", "rounded to nearest"),
    CALIBRATED: (GREEN, "D", "activations calibrated"),
    LEARNED: (BLUE, "s", "learned"),
}
BELOW = 6.0  # margins below the float network that are drawn
BESIDE = 0.025  # of the range of sizes: the distance between trials of the same size


def search_trials(record: SearchRecord, path: Path) -> None:
    """Top-1 (percent) against size (kB), with the margin: one point per trial with the 95 % CI of its drop, and a ring
    around the network that was found."""
    figure, axes = canvas()
    level = record.trials[0].result.top1_float
    lowest = level - BELOW * record.max_drop
    shown = [found for found in record.trials if found.result.top1 >= lowest]
    places = _places(shown)
    for how, (colour, marker, name) in WAYS.items():
        here = [(place, found.result) for place, found in zip(places, shown, strict=True) if found.trial.how == how]
        if here:
            low = [max(0.0, result.top1_drop_ci_high - result.top1_drop) for _, result in here]
            high = [max(0.0, result.top1_drop - result.top1_drop_ci_low) for _, result in here]
            look = {"color": colour, "marker": marker, "linestyle": "none", "capsize": 3, "label": name}
            axes.errorbar([place for place, _ in here], [result.top1 for _, result in here], yerr=[low, high], **look)
    for place, found in zip(places, shown, strict=True):
        look = {"xytext": (5, 4), "textcoords": "offset points", "fontsize": SMALL, "rotation": 60}
        axes.annotate(_name(found), (place, found.result.top1), **look)
    front = pareto_front([(f.result.size_bytes / 1000, f.result.top1, f.result.bits_mean) for f in shown])
    if len(front) > 1:
        axes.plot([p[0] for p in front], [p[1] for p in front], color=GREY, linewidth=1, zorder=0, label="Pareto front")
    axes.axhline(level, color=BLACK, linestyle="--", linewidth=1.5, zorder=1, label=f"float ({level:.2f} %)")
    axes.axhline(
        level - record.max_drop, color=RED, linewidth=1.5, zorder=1, label=f"margin ({record.max_drop:g} points)"
    )
    if record.best is not None:
        place = places[shown.index(record.best)]
        ring = {"marker": "o", "markersize": 15, "fillstyle": "none", "markeredgewidth": 2, "linestyle": "none"}
        axes.plot([place], [record.best.result.top1], color=RED, label="found", **ring)
    hidden = len(record.trials) - len(shown)
    note = f" ({hidden} trial{'s' * (hidden > 1)} below the figure)" if hidden else ""
    axes.set(xlabel=f"size of the packed network (kB){note}", ylabel="top-1 accuracy (%), 95 % CI of the drop")
    axes.margins(x=0.12, y=0.1)
    axes.grid(alpha=0.3)
    write_title(figure, record.title)
    legend(axes)
    save(figure, path)


def _places(shown: list[TrialResult]) -> list[float]:
    """The sizes in kB. Trials of the same size, which differ in their activations, are drawn side by side."""
    sizes = [found.result.size_bytes / 1000 for found in shown]
    apart = BESIDE * (max(sizes) - min(sizes)) if len(set(sizes)) > 1 else 0.1
    places: list[float] = []
    for number, size in enumerate(sizes):
        earlier = sum(abs(other - size) < apart for other in sizes[:number])
        places.append(size + apart * earlier)
    return places


def _name(found: TrialResult) -> str:
    act_bits = found.result.act_bits
    return f"W{stored_width(found.result)}" + (f"A{act_bits}" if act_bits is not None else "")
