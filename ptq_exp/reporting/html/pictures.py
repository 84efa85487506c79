"""The figures of a report: read from a folder, compressed, with captions, and as text inside the page."""

import base64
from pathlib import Path

from ptq_exp.reporting.plots.style import few_colours

CAPTIONS = {
    "search": "Trials of the search: accuracy against size, with the margin",
    "accuracy_against_bits": "Accuracy against bit width",
    "accuracy_against_size": "Accuracy against size; the line is the Pareto front",
    "layers": "Signal-to-quantization-noise ratio (SQNR) and levels used, by layer",
    "weights": "Float weights and quantization levels",
    "activations": "Layer inputs on the calibration images, with clipping values",
    "confusion": "Change of predictions by class",
    "levels": "Levels used and signal-to-quantization-noise ratio (SQNR), by layer",
    "one_layer": "Sensitivity: one layer quantized at a time",
    "pareto": "Mixed precision: sensitivity against mean bits per weight",
    "first_conv_density": "First convolution: weight distribution, standard deviation and clipping value",
    "training": "Training of the float network",
}
Pictures = dict[str, bytes]  # an SVG or a PNG, by file name or by caption


def images(folder: Path) -> Pictures:
    """The figures in a folder, by file name: the SVG if there is one, else the PNG with few colours."""
    paths = {path.stem: path for suffix in ("png", "svg") for path in folder.glob(f"*.{suffix}")}
    found = sorted(paths.values(), key=_place)
    return {path.name: path.read_bytes() if path.suffix == ".svg" else few_colours(path.read_bytes()) for path in found}


def _place(path: Path) -> tuple[int, str]:
    """A sort key: the order of `CAPTIONS`, then the file name."""
    return next((n for n, start in enumerate(CAPTIONS) if path.name.startswith(start)), len(CAPTIONS)), path.name


def captioned(pictures: Pictures) -> Pictures:
    """Figures by caption instead of file name. Captions of several figures of one kind keep what distinguishes them."""
    shown = {}
    for name, content in pictures.items():
        stem = name.removesuffix(".png").removesuffix(".svg")
        kind = next((start for start in CAPTIONS if stem.startswith(start)), stem)
        rest = stem.removeprefix(kind).strip("_")
        rest = f"quant.bits={rest[1:]}" if rest[:1] == "w" and rest[1:].isdecimal() else rest
        shown[CAPTIONS.get(kind, kind) + (f" ({rest})" if rest else "")] = content
    return shown


def data_uri(content: bytes) -> str:
    """A figure as the address of an image."""
    kind = "png" if not content.lstrip().startswith(b"<") else "svg+xml"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
