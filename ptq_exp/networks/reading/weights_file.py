"""The weights in a file, before it is known to which network they belong."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass
class WeightsFile:
    """What a checkpoint file holds; see `reading.read_weights`."""

    path: Path
    sha256: str
    weights: dict[str, Tensor]  # without prefixes, normalizing layers and profiler counters; floats are float32
    original: dict[str, Tensor]  # with the names and tensors of the file; floats are float32
    metadata: dict[str, Any] = field(default_factory=dict)  # of our own files; mean and std also of others
    claim: tuple[str, float] | None = None  # the accuracy stated in the file: its name and its value in percent
