"""The style of all figures. Functions import matplotlib, never pyplot: no global state, no display."""

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_exp.base.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito 2008: eight colours that are distinguishable under every common colour blindness.
BLACK, ORANGE, BLUE, GREEN, RED, SKY = "#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#56B4E9"
SERIES = [BLUE, ORANGE, GREEN, RED, "#CC79A7", SKY, BLACK]
MARKERS = "osD^v"
GREY = "#666666"
WIDTH = 7.0  # inches, at 150 dots per inch, so that 10-point text has 10 pixels at half size
DPI = 150
COLOURS = 64  # of a PNG with a palette
TEXT, SMALL = 11, 10  # points
# Text stays text. The file depends only on what it shows.
SVG: Any = {"svg.fonttype": "none", "svg.hashsalt": "ptq_exp", "font.sans-serif": ["DejaVu Sans", "sans-serif"]}
LETTER = 0.092  # inches per letter at size SMALL, an upper estimate


def canvas(
    height: float = 4.5, *, left: float = 0.8, right: float = 0.2, top: float = 0.5, bottom: float = 0.65
) -> Any:
    """A figure of `WIDTH` x `height` inches and its axes, with margins in inches.

    The margins are given, because computing them in matplotlib takes longer than all the drawing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    return figure, add_axes(figure, left, bottom, WIDTH - left - right, height - top - bottom)


def add_axes(figure: "Figure", left: float, bottom: float, width: float, height: float) -> Any:
    """Axes at a position given in inches."""
    across, up = figure.get_size_inches()
    axes: Any = figure.add_axes((left / across, bottom / up, width / across, height / up))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=TEXT)
    axes.xaxis.label.set_size(TEXT)
    axes.yaxis.label.set_size(TEXT)
    return axes


def write_title(figure: "Figure", title: str) -> None:
    """Write the title at the left edge of the figure, a long one in smaller letters."""
    height, title = figure.get_size_inches()[1], shorten(title, 84)
    size = 13 * min(1.0, 68 / len(title)) if title else 13
    figure.text(0.12 / WIDTH, 1 - 0.1 / height, title, ha="left", va="top", fontsize=size)


def write_note(figure: "Figure", note: str, below: float = 0.4) -> None:
    """Write how to read the figure, `below` inches under its upper edge."""
    height = figure.get_size_inches()[1]
    figure.text(0.12 / WIDTH, 1 - below / height, note, ha="left", va="top", fontsize=SMALL)


def shorten(text: str, letters: int) -> str:
    """The text, truncated if it has more than `letters` letters."""
    return text if len(text) <= letters else textwrap.shorten(text, letters, placeholder=" ...") or text[:letters]


def legend(axes: Any, below: bool = False) -> None:
    """Draw a legend inside the axes, where it covers the least.

    A legend with long or many entries goes below the axes, and the figure becomes taller; with `below`, every legend.
    """
    names = axes.get_legend_handles_labels()[1]
    longest = max(map(len, names))
    if not below and len(names) <= 6 and longest <= 44:
        axes.legend(loc="best", fontsize=SMALL, framealpha=0.9, edgecolor="none")
        return
    columns = 2 if longest <= 32 else 1
    figure = axes.figure
    (across, up), extra = figure.get_size_inches(), 0.3 + 0.22 * -(-len(names) // columns)
    box = axes.get_position()
    for other in figure.axes:
        if other is not axes:  # axes below keep their position
            left, bottom, width, height = other.get_position().bounds
            other.set_position((left, bottom * up / (up + extra), width, height * up / (up + extra)))
    for text in figure.texts:
        text.set_y(1 - (1 - text.get_position()[1]) * up / (up + extra))
    figure.set_size_inches(across, up + extra)
    axes.set_position((box.x0, (box.y0 * up + extra) / (up + extra), box.width, box.height * up / (up + extra)))
    axes.legend(
        loc="upper left", bbox_to_anchor=(0, -0.65 / (box.height * up)), ncols=columns, fontsize=SMALL, frameon=False,
        borderaxespad=0, columnspacing=1,
    )  # fmt: skip


def margin_for(labels: list[str]) -> float:
    """The width in inches of horizontal labels beside an axis."""
    return 0.2 + LETTER * max((len(label) for label in labels), default=0)


def save(figure: "Figure", path: Path, vector: bool = True) -> None:
    """Write the PNG and, with `vector`, the same figure as an SVG beside it, for the report. If `path` ends with .svg,
    write the SVG alone.

    Figures with thousands of shapes have no SVG, which would be larger: their PNG has fewer colours instead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not vector:
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=DPI, pil_kwargs={"compress_level": 0})
        write_atomically(path, lambda part: part.write_bytes(few_colours(drawn.getvalue())))
        return
    if path.suffix != ".svg":  # the best compression would take as long as drawing
        fast = {"compress_level": 1}
        write_atomically(path, lambda part: figure.savefig(part, format="png", dpi=DPI, pil_kwargs=fast))
    import matplotlib

    with matplotlib.rc_context(SVG):
        about = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        write_atomically(path.with_suffix(".svg"), lambda part: figure.savefig(part, format="svg", metadata=about))


def few_colours(png: bytes) -> bytes:
    """The PNG with a palette, which makes it about five times smaller. What cannot be read stays as it is."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png)) as image:
            if image.mode == "P":
                return png
            few = image.convert("RGB").quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    except (OSError, ValueError):
        return png
    small = io.BytesIO()
    few.save(small, "PNG", compress_level=6, dpi=(DPI, DPI))
    return small.getvalue()
