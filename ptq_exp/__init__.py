"""ptq_exp: how few bits can this network take, and why does it break?"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from ptq_exp.export.inference import QuantizedNetwork


def load(path: "str | Path", device: str = "cpu", network: "nn.Module | None" = None) -> "QuantizedNetwork":
    """`ptq_exp.load("quantized_w4.safetensors")`: a module that takes uint8 images (N, C, H, W) and returns logits.

    `network` is an instance of your own class, needed if its source file has moved or changed.
    """
    from ptq_exp.export.inference import load  # torch is imported here: the command line's --help must not wait for it

    return load(path, device, network)
