"""How quantization changes the predictions by class."""

from pathlib import Path
from typing import Any

from ptq_exp.reporting.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    RED,
    SMALL,
    WIDTH,
    canvas,
    margin_for,
    save,
    shorten,
    write_note,
    write_title,
)

FAINT = 10.0  # points: lower limit of the colour scale, so that random changes stay pale
FRAME = "#c8c8c8"
FEW = 20  # the most classes that are drawn as a matrix
SHOWN = 20  # bars, if there are more classes


def confusion_change(
    classes: list[str], before: list[list[int]], after: list[list[int]], title: str, path: Path
) -> None:
    """The change of predictions between classes, in percent of the test images of the true class.

    `before` and `after` count the images by true class (rows) and predicted class (columns), for the float and the
    quantized network. With many classes, bars show the classes that lost the most accuracy.
    """
    sizes = [max(1, sum(line)) for line in before]
    change = [
        [100 * (b - a) / size for a, b in zip(first, second, strict=True)]
        for first, second, size in zip(before, after, sizes, strict=True)
    ]
    names = [shorten(name, 14) for name in classes]
    if len(classes) <= FEW:
        _matrix(names, change, title, path)
    else:
        _bars(names, [line[number] for number, line in enumerate(change)], title, path)


def _matrix(names: list[str], change: list[list[float]], title: str, path: Path) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    left = margin_for(names) + 0.3
    cell = min(0.6, (WIDTH - left - 0.3) / len(names))
    below = 0.7 + 0.06 * max(map(len, names))
    height = 0.75 + len(names) * 0.38 + below
    figure, axes = canvas(height, left=left, right=WIDTH - left - cell * len(names), top=0.75, bottom=below)
    limit = max(FAINT, *(abs(value) for line in change for value in line))
    colours = LinearSegmentedColormap.from_list("change", [BLUE, "white", RED])
    axes.imshow(change, cmap=colours, vmin=-limit, vmax=limit, aspect="auto")
    for y, line in enumerate(change):
        for x, value in enumerate(line):
            text = f"{value:+.0f}" if round(value) else ("·" if value else "")
            strong = abs(value) > 0.6 * limit
            axes.text(
                x, y, text, ha="center", va="center", fontsize=SMALL, color="white" if strong else BLACK,
                fontweight="bold" if x == y else "normal",
            )  # fmt: skip
    axes.set_xticks(range(len(names)), names, fontsize=SMALL, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names, fontsize=SMALL)
    edges = [place - 0.5 for place in range(1, len(names))]
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color=FRAME, linewidth=0.5)
    axes.spines[:].set(visible=True, color=FRAME)
    axes.tick_params(which="both", length=0)
    axes.set(xlabel="predicted class", ylabel="true class")
    write_title(figure, title)
    note = "change against float in % of the class's test images: more (orange) or fewer (blue)"
    write_note(figure, note)
    save(figure, path, vector=False)


def _bars(names: list[str], recall: list[float], title: str, path: Path) -> None:
    order = sorted(range(len(names)), key=lambda number: recall[number])[:SHOWN]
    labels: list[Any] = [names[number] for number in order]
    values = [recall[number] for number in order]
    figure, axes = canvas(1.45 + 0.24 * len(order), left=margin_for(labels), top=0.75)
    axes.barh(range(len(order)), values, color=[RED if value < 0 else GREEN for value in values])
    axes.set_yticks(range(len(order)), labels, fontsize=SMALL)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set(xlabel="change of class accuracy (points)")
    axes.grid(axis="x", alpha=0.3)
    write_title(figure, title)
    lost = sum(value < 0 for value in recall)
    note = f"{lost} of {len(names)} classes lost accuracy; the {len(order)} classes with the largest loss are shown"
    write_note(figure, note)
    save(figure, path)
