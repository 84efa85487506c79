"""The files that other quantization tools write, beside those of ptq_exp. See `python -m bench.export_peers --help`.

`writers.py` has a function per tool that quantizes the network and writes its files, `running.py` a function per
runtime that loads one, `measuring.py` the measurements, and `table.py` the table of docs/export.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Runner = Callable[[Tensor], Tensor]  # normalized images (N, 3, H, W), float32 -> logits (N, classes), on the CPU

# bits of the weights and of the activations
WIDTHS: dict[str, tuple[int, int | None]] = {"W8A8": (8, 8), "W7A8": (7, 8), "W4": (4, None)}
SIMULATION = "simulation"  # the "runtime" of a tool's own simulation in PyTorch


@dataclass(frozen=True)
class File:
    """What a tool wrote: its format, its paths in the folder (the first is loaded), and the runtimes to try."""

    format: str
    paths: tuple[str, ...]
    runtimes: tuple[str, ...]  # keys of `running.RUNTIMES`


@dataclass(frozen=True)
class Quantized:
    """A network that a tool quantized: its files, and the tool's own simulation, if it has one."""

    files: tuple[File, ...]
    simulation: Runner | None
    settings: dict[str, Any]
