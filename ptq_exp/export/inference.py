"""Quantized networks from their files, ready for inference."""

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.base.tensors import load_checked
from ptq_exp.data.loader import Normalizer
from ptq_exp.export.network_file import load_quantized
from ptq_exp.networks import build_model


class QuantizedNetwork(nn.Module):
    """A quantized network with its normalization and its class names, in evaluation mode.

    It takes images (N, C, H, W). uint8 images are normalized first; float images must already be normalized. It returns
    logits, float32 (N, classes). `about` holds the metadata of the file. Raises `ValueError` for other inputs.
    """

    def __init__(self, network: nn.Module, about: dict[str, Any]):
        super().__init__()
        self.network, self.about, self.classes = network, about, list(about["classes"])
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        channels = len(self.about["mean"])
        if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[1] != channels:
            found = tuple(images.shape) if hasattr(images, "shape") else type(images).__name__
            raise ValueError(f"Expected images as a tensor (N, {channels}, H, W), not {found}.")
        if images.is_floating_point() and len(images) and images.min() >= 0:
            warnings.warn("Float images must be normalized, but these have no negative values.", stacklevel=2)
        if images.dtype == torch.uint8:
            images = Normalizer(self.about["mean"], self.about["std"], images.device)(images)
        logits: Tensor = self.network(images)
        return logits


def load(path: str | Path, device: str = "cpu") -> QuantizedNetwork:
    """The quantized network of a `quantized_w<bits>.safetensors`. The file contains the architecture.

    The network takes uint8 images (N, C, H, W), or float images normalized by `about["mean"]` and `about["std"]`.

    Raises `UserError` if the file is missing, damaged or not a quantized network.
    """
    try:
        about = load_checked(Path(path))[1]
        network = build_model(classes=len(about["classes"]), **about["model"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = "it has no metadata of a quantized network" if isinstance(error, KeyError | TypeError) else error
        raise UserError(
            f"{path} is not a quantized network saved by ptq_exp ({reason}). "
            f"Give a job's quantized_w<bits>.safetensors."
        ) from error
    return QuantizedNetwork(load_quantized(Path(path), network)[0], about).to(device)


class _Predictor:
    """The object that `mlflow.pyfunc` calls."""

    def __init__(self, network: QuantizedNetwork):
        self.network = network

    @torch.inference_mode()
    def predict(self, images: Any, params: Any = None) -> Any:
        """Logits (N, classes), float32, of uint8 images (N, C, H, W) in a numpy array."""
        if isinstance(images, dict):  # a named input
            (images,) = images.values()
        return self.network(torch.as_tensor(images)).numpy()


def _load_pyfunc(path: str) -> _Predictor:
    """MLflow's hook for models with this module as `loader_module`."""
    return _Predictor(load(path))
