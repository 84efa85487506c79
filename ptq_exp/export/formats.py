"""What every format has in common: what is exported, the files that are written, and the runtimes that run them."""

import contextlib
import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.quantization.layers import ActivationQuantizer, AroundLayer, QuantizedLayer, QuantizedOperation
from ptq_exp.quantization.modules import copy_network, replace_module

Runner = Callable[[Tensor], Tensor]  # normalized images (N, C, H, W), float32 -> logits (N, classes), both on the CPU


@dataclass(frozen=True)
class Subject:
    """A network to export, quantized or float, on the CPU and in evaluation mode."""

    network: nn.Module
    image: Tensor  # a normalized image (C, H, W), which gives the size of the input
    about: dict[str, Any]  # what its packed file says: constructor, classes, normalization, method
    float_network: nn.Module | None = None  # of the same class, if the packed file does not say how to build it

    @classmethod
    def of(
        cls, network: nn.Module, image: Tensor, about: dict[str, Any], float_network: nn.Module | None = None
    ) -> "Subject":
        """A copy of `network` on the CPU, which leaves the original as it is."""
        copied = copy_network(network).cpu().eval()
        for parameter in copied.parameters():
            parameter.requires_grad_(False)
        return cls(copied, image.cpu().contiguous(), about, float_network)

    def unquantized(self) -> "Subject":
        """The same network without quantizers, in float, to compare speeds with."""
        network = copy_network(self.network)
        for name, module in list(network.named_modules()):
            if isinstance(module, QuantizedLayer):
                replace_module(network, name, module.layer)
            elif isinstance(module, QuantizedOperation):
                replace_module(network, name, module.operation)
        return Subject(network, self.image, {})


@dataclass(frozen=True)
class Written:
    """A file that was written, and the runtime that verifies it."""

    path: Path
    runtime: str  # as people call it: ONNX Runtime
    metric: str  # the first part of its metrics' names
    load: Callable[[Path], Runner]  # raises `NotInstalled`
    timed: bool = True  # whether the speed of what was loaded is that of the file


class DecodedLayer(AroundLayer):
    """Stands for a `QuantizedLayer`: the same convolution or product with weights that a derived class decodes."""

    def __init__(self, layer: QuantizedLayer):
        super().__init__()
        self.layer, self.activation, self.shape = copy.copy(layer.layer), layer.activation, layer.codes.shape
        self.layer._parameters = {"bias": layer.layer._parameters["bias"]}  # without the weight

    @property
    def weight(self) -> Tensor:
        """The weights, also for networks that read them without calling the layer."""
        raise NotImplementedError

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer."""
        return self.layer._parameters["bias"]

    def forward(self, input: Tensor) -> Tensor:
        x = input if self.activation is None else self.activation(input)
        return self.with_weight(x, self.weight)


class NotInstalled(Exception):
    """A runtime or a writer is not installed. The message says how to install it."""


class Format:
    """A file format for quantized networks. A derived class has its key in `FORMATS` and implements `write`."""

    def write(self, subject: Subject, folder: Path, name: str) -> list[Written]:
        """Write `subject` to one or more files in `folder` whose names begin with `name`.

        Raises `NotInstalled` if nothing can be written, and `UserError` with the operator or the line of code that
        stands in the way.
        """
        raise NotImplementedError


@contextlib.contextmanager
def needing(package: str) -> Iterator[None]:
    """Turn a missing package into a sentence on how to install it."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in (package, "onnx", "onnxscript", "onnx_ir", "onnxruntime"):
            raise
        raise NotInstalled(f"not verified (pip install {package}, or pip install 'ptq_exp[export]')") from error


def quantizes_activations(network: nn.Module) -> bool:
    """Whether any activations are quantized, not only weights."""
    return any(isinstance(module, ActivationQuantizer) for module in network.modules())


def runner(network: Callable[[Tensor], Tensor]) -> Runner:
    """A PyTorch network, called without gradients."""

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        return network(images)

    return run


def first_line(error: Exception) -> str:
    """The first line of an error's message that says something: what is not supported, if it is about that."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    missing = [line for line in lines if re.search(r"[Uu]nsupported|not supported|No conversion rule", line)]
    lines = missing or [line for line in lines if not line.startswith(("Exception from", "Check "))] or lines
    return lines[0] if lines else type(error).__name__


@torch.no_grad()
def exported(network: nn.Module, image: Tensor) -> "torch.export.ExportedProgram":
    """`network` as a program of torch.export, for any number of images. Raises `UserError` if it cannot be exported."""
    images = image[None].repeat(2, 1, 1, 1)  # one image would make the number of images a constant
    try:
        return torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    except Exception as error:  # torch.export raises what the forward function raises, and a dozen errors of its own
        reason = first_line(error)
        if "Constraints violated (batch)" in reason:
            reason = "its code fixes the number of images, as int(x.shape[0]) does"
        raise UserError(f"The network cannot be exported: {reason}.") from error
