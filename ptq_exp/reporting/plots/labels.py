"""Labels beside points, placed so that none covers another label, another point or its error bar."""

from dataclasses import dataclass
from typing import Any

from ptq_exp.reporting.plots.style import BLACK, LETTER, RED, SMALL

Box = tuple[float, float, float, float]  # left, bottom, right, top, in points (1/72 inch)

HEIGHT = 12.0  # points, of a line of text at size SMALL
MARKER, RING = 5.0, 9.0  # points, half the side of what is drawn at a point
BOLD = 1.1  # length of a bold text relative to a plain one
SIDES = {-1: "right", 0: "center", 1: "left"}  # where the text is relative to its point: its alignment


@dataclass(frozen=True)
class Labelled:
    """A point in the coordinates of the axes, with the ends of its error bar."""

    text: str
    x: float
    y: float
    low: float
    high: float
    ringed: bool = False
    colour: str = BLACK


def label_points(axes: Any, points: list[Labelled], lines: list[float]) -> None:
    """Label the points, the first ones first. A label without a free place is omitted, except that of a ringed point.

    `lines` are the heights of horizontal lines, which labels avoid if they can. The limits of the axes must be final.
    Sizes of texts are estimated: measuring them takes longer than drawing.
    """
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3, foreground="white")]  # a line may pass behind the text
    width, height = (side * 72 for side in axes.figure.get_size_inches() * axes.get_position().size)
    places = [_place(axes, point) for point in points]
    shapes = [_shapes(point, place) for point, place in zip(points, places, strict=True)]
    crossed = [(0.0, y - 1, width, y + 1) for y in (_place(axes, Labelled("", 0, y, y, y))[1] for y in lines)]
    taken: list[Box] = []
    for number, (point, place) in enumerate(zip(points, places, strict=True)):
        others = [box for other in shapes[:number] + shapes[number + 1 :] for box in other]
        found: list[tuple[int, int, int, float, Box]] = []
        for order, (side, up) in enumerate(_candidates(point, place)):
            box = _text_box(point, place, side, up)
            inside = box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height
            collisions = _hits(box, [*taken, *others])
            if inside and (point.ringed or not collisions):
                found.append((100 * collisions + _hits(box, [*crossed, *shapes[number]]), order, side, up, box))
        if found:
            _, _, side, up, box = min(found)
            taken.append(box)
            look: dict[str, Any] = {"color": point.colour}
            if point.ringed:
                look = {"color": RED, "fontweight": "bold"}  # red like the ring
            look |= {"ha": SIDES[side], "va": "center", "fontsize": SMALL, "path_effects": halo}
            shift = {"xytext": (side * _gap(point), up), "textcoords": "offset points"}
            axes.annotate(point.text, (point.x, point.y), **shift, **look)


def _place(axes: Any, point: Labelled) -> tuple[float, float, float, float]:
    """x, y and the ends of the error bar in points from the lower left corner of the axes."""
    ends = [(point.x, y) for y in (point.y, point.low, point.high)]
    shown = (axes.transData.transform(ends) - axes.transAxes.transform((0, 0))) * 72 / axes.figure.dpi
    return shown[0][0], shown[0][1], shown[1][1], shown[2][1]


def _candidates(point: Labelled, place: tuple[float, float, float, float]) -> list[tuple[int, float]]:
    """Side and height in points of the middle of the text, relative to the point, best first: beside the point, then
    above and below its error bar."""
    _, y, low, high = place
    beside = [(side, up) for up in (-HEIGHT / 2 - 1, HEIGHT / 2 + 1, 0.0, -HEIGHT - 2, HEIGHT + 2) for side in (1, -1)]
    reach = max(HEIGHT / 2 + 2, _gap(point) + HEIGHT / 2)
    return [*beside, (0, max(high - y + HEIGHT / 2 + 2, reach)), (0, min(low - y - HEIGHT / 2 - 2, -reach))]


def _text_box(point: Labelled, place: tuple[float, float, float, float], side: int, up: float) -> Box:
    length = 72 * LETTER * len(point.text) * (BOLD if point.ringed else 1)
    left = place[0] + side * _gap(point) - {1: 0, 0: length / 2, -1: length}[side]
    return left, place[1] + up - HEIGHT / 2, left + length, place[1] + up + HEIGHT / 2


def _gap(point: Labelled) -> float:
    return (RING if point.ringed else MARKER) + 2


def _shapes(point: Labelled, place: tuple[float, float, float, float]) -> list[Box]:
    """The boxes of the marker and of the error bar."""
    (x, y, low, high), reach = place, RING if point.ringed else MARKER
    return [(x - reach, y - reach, x + reach, y + reach), (x - 1, low, x + 1, high)]


def _hits(box: Box, others: list[Box]) -> int:
    """How many of the others overlap the box."""
    return sum(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in others)
