"""The weights in a file, before it is known to which network they belong."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

Parts = dict[str, dict[str, Tensor]]


@dataclass
class Beside:
    """The state dicts that lie in one dictionary of a file."""

    choice: str = ""  # for the log: the one that is used alone, if there are several
    read: Callable[[], Parts] = dict  # all of them, by their names in this dictionary; empty if there is only one


@dataclass
class WeightsFile:
    """What a checkpoint file holds; see `reading.read_weights`."""

    path: Path
    sha256: str
    weights: dict[str, Tensor]  # without prefixes, normalizing layers and profiler counters; floats are float32
    original: dict[str, Tensor]  # with the names and tensors of the file; floats are float32
    metadata: dict[str, Any] = field(default_factory=dict)  # of our own files; mean and std also of others
    claim: tuple[str, float] | None = None  # the accuracy stated in the file: its name and its value in percent
    beside: Beside = field(default_factory=Beside)
