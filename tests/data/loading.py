"""What the tests of data sets share: loading with a root and a cache of the test's own, and comparing images."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptq_exp.data import load_dataset
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.options import DataOptions

DIGITS_FINGERPRINT = "e0d2f8df67c16313a95788fc1192ed197a644a4cf2a0cceb177fa429d663541c"
CPU = torch.device("cpu")


def load(tmp_path: Path, name: str, seed: int = 0, **options: Any) -> Dataset:
    options.setdefault("root", str(tmp_path / "root"))
    torch.manual_seed(seed)  # which must not matter
    return load_dataset(DataOptions(name=name, **options), tmp_path / "cache", CPU)


def rows(images: Tensor, labels: Tensor) -> list[bytes]:
    """Each image with its label as bytes, sorted: equal for equal sets of labelled images."""
    return sorted(image.numpy().tobytes() + bytes([int(label)]) for image, label in zip(images, labels, strict=True))


def flip_pixel(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 0xFF
    path.write_bytes(content)
