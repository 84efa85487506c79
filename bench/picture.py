"""The figure of the README, from existing measurements: `python -m bench.picture`.

It shows top-1 on the 10,000 JPEG test images against the stored bits per weight, including the sign: for the notebook's
method and rounding to nearest with one range per output channel (bench/results/why.json), and for `quant=best`
(bench/results/accuracy.jsonl, mean over the seeds).
"""

import json
import statistics

from bench.accuracy import CHECKPOINT, RESULTS, ROWS, read
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.evaluation.accuracy import wilson_interval
from ptq_exp.reporting.plots.style import BLACK, BLUE, GREEN, GREY, MARKERS, ORANGE, canvas, legend, save, write_title

PICTURE = PROJECT_ROOT / "docs" / "figures" / "accuracy.png"
IMAGES = 10_000
SIGN = 1  # in why.json the sign is stored in addition to the bits
METHODS = {
    "notebook: 3 std of conv1": ("the course notebook: one range for all layers", ORANGE),
    "one range per channel (mse)": ("one range per output channel", GREEN),
}
OURS = ["W2 (4 levels)", "W3", "W4", "W8"]

Points = list[tuple[float, float]]  # bits, top-1 in percent


def main() -> None:
    """Draw the figure."""
    measured = json.loads((PROJECT_ROOT / "bench" / "results" / "why.json").read_text())["jpeg"]
    lines = read(RESULTS, CHECKPOINT)
    best: Points = []
    for name in OURS:
        found = [line["jpeg"] for line in lines if line["row"] == name]
        best.append((ROWS[name][0], statistics.mean(found)))
    series: dict[str, tuple[Points, str]] = {"quant=best: learned rounding": (best, BLUE)}
    for key, (label, colour) in METHODS.items():
        series[label] = [(row["bits"] + SIGN, row["top1"]) for row in measured[key]], colour
    draw(series, lines[0]["jpeg_float"])


def draw(series: dict[str, tuple[Points, str]], level: float) -> None:
    """Draw one line per method with the 95 % CI on the test images, and a line for the float network."""
    figure, axes = canvas(4.2)
    for marker, (label, (points, colour)) in zip(MARKERS, series.items(), strict=False):
        bits, top1 = zip(*points, strict=True)
        ends = [wilson_interval(round(value / 100 * IMAGES), IMAGES) for value in top1]
        errors = [
            [v - low for v, (low, _) in zip(top1, ends, strict=True)],
            [h - v for v, (_, h) in zip(top1, ends, strict=True)],
        ]
        axes.errorbar(bits, top1, yerr=errors, label=label, color=colour, marker=marker, capsize=3, linewidth=2)
    axes.axhline(level, color=BLACK, linestyle="--", linewidth=1.5, label=f"float network ({level:.2f} %)", zorder=1)
    fewest, top1 = next(iter(series.values()))[0][0]
    text, look = f"{top1:.1f} % at {fewest} bits", {"color": BLUE, "fontsize": 11}
    axes.annotate(text, (fewest, top1), xytext=(10, -22), textcoords="offset points", **look)
    axes.set(xlabel="bits per weight (including sign)", ylabel="top-1 accuracy (%)", ylim=(0, 95))
    axes.grid(axis="y", color=GREY, alpha=0.3)
    write_title(figure, "ResNet-20 on CIFAR-10 (JPEG test images): how few bits?")
    legend(axes)
    save(figure, PICTURE, vector=False)


if __name__ == "__main__":
    main()
