"""ptq_exp: how few bits can this network take, and why does it break?

The functions are documented in docs/python.md. They import torch when they are called, because `run.py --help` must not
wait for it.
"""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

# The package `ptq_exp.export` is imported first, or its first import would replace the function of this name.
from ptq_exp.export import FORMATS as _FORMATS  # noqa: F401

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from ptq_exp.base.errors import UserError
    from ptq_exp.export.inference import QuantizedNetwork
    from ptq_exp.results.exports import ExportResult
    from ptq_exp.runs.api.accuracy import Accuracy
    from ptq_exp.runs.api.float_network import FloatNetwork
    from ptq_exp.runs.api.quantizing import QuantizedModel

__version__ = "0.1.0"

__all__ = [
    "Accuracy", "ExportResult", "FloatNetwork", "QuantizedModel", "QuantizedNetwork", "UserError", "evaluate", "export",
    "float_network", "load", "quantize",
]  # fmt: skip

_CLASSES = {
    "Accuracy": "ptq_exp.runs.api.accuracy", "ExportResult": "ptq_exp.results.exports",
    "FloatNetwork": "ptq_exp.runs.api.float_network", "QuantizedModel": "ptq_exp.runs.api.quantizing",
    "QuantizedNetwork": "ptq_exp.export.inference", "UserError": "ptq_exp.base.errors",
}  # fmt: skip


def quantize(
    model: "nn.Module | FloatNetwork", images: "Tensor", bits: int = 4, method: str = "best", **changes: Any
) -> "QuantizedModel":
    """`ptq_exp.quantize(network, images, bits=4, method="best")`: a quantized copy of any image classifier.

    `images` are normalized training images, float (N, C, H, W), without labels. If there are more than
    `calibration_images`, these are drawn as in a job with `calibration_seed` (0 unless given). `method` is a file in
    conf/quant. `changes` are keys of `quant`: `act_bits=8`, `granularity="channel"`, `reconstruction={"steps": 500}`.
    The float network stays as it is. The result is on its device.

    Raises `UserError` for an unknown method or key, a value that is not allowed, or images that the network rejects.
    """
    from ptq_exp.runs.api import quantizing

    return quantizing.quantize(model, images, bits, method, changes)


def evaluate(
    network: "nn.Module | FloatNetwork | QuantizedModel",
    images: "Tensor",
    labels: "Tensor | Sequence[int]",
    float_network: "nn.Module | FloatNetwork | None" = None,
) -> "Accuracy":
    """`ptq_exp.evaluate(quantized, images, labels, network)`: top-1 with its 95 % confidence interval.

    `images` are normalized, float (N, C, H, W), and `labels` are N integers. With `float_network`, the result also has
    the drop against it with its paired 95 % confidence interval, and the agreement of the predictions.

    Raises `UserError` if images and labels do not fit the network.
    """
    from ptq_exp.runs.api import accuracy

    return accuracy.evaluate(network, images, labels, float_network)


def export(
    quantized: "QuantizedModel",
    path: "str | Path",
    formats: "str | Sequence[str]",
    images: "Tensor",
    labels: "Tensor | Sequence[int]",
) -> "list[ExportResult]":
    """`ptq_exp.export(quantized, "out/net", "onnx", images, labels)`: verified files for other programs.

    Each of the `formats` (onnx, packed, program, header) gets a file whose name begins with `path`. The file is loaded
    by its own runtime and run on the normalized `images`, float (N, C, H, W). The result says how often it predicts
    what `quantized.network` predicts, how large it is and how fast. Takes some seconds per file.

    Raises `UserError` if a file cannot be written, or does not do what was simulated.
    """
    from ptq_exp.runs.api import exporting

    return exporting.export(quantized, path, formats, images, labels)


def float_network(*words: str) -> "FloatNetwork":
    """`ptq_exp.float_network("data=digits", "model.depth=8")`: the network and the images of a job.

    `words` are options as on the command line, such as `checkpoint=resnet20.th data=image_folder data.root=...`. The
    network is read from its checkpoint or from the store, or trained and stored, as `run.py` does.

    Raises `UserError` for an invalid option, or if files are missing or do not fit each other.
    """
    from ptq_exp.runs.api import float_network

    return float_network.float_network(words)


def load(path: "str | Path", device: str = "cpu", network: "nn.Module | None" = None) -> "QuantizedNetwork":
    """`ptq_exp.load("quantized_w4.safetensors")`: a module that takes uint8 images (N, C, H, W) and returns logits.

    `network` is an instance of your own class, needed if the file does not say how to build it, or if its source file
    has moved or changed.
    """
    from ptq_exp.export.inference import load

    return load(path, device, network)


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return getattr(importlib.import_module(_CLASSES[name]), name)
    raise AttributeError(f"module 'ptq_exp' has no attribute '{name}'")
