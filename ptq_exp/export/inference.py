"""Quantized networks from their files, ready for inference."""

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.data.loader import Normalizer
from ptq_exp.export.network_file import load_quantized
from ptq_exp.export.packed_file import read_packed
from ptq_exp.networks import build_model, custom
from ptq_exp.networks.graph.calling import channels_last, contiguous_images, only_logits, returns_only_logits
from ptq_exp.quantization.modules import copy_network, unwrapped


class QuantizedNetwork(nn.Module):
    """A quantized network with its normalization and its class names, in evaluation mode.

    It takes images (N, C, H, W). uint8 images are normalized first, if `about` states how; float images must already be
    normalized. It returns logits, float32 (N, classes). `about` holds the metadata of the file. Raises `ValueError` for
    other inputs.
    """

    def __init__(self, network: nn.Module, about: dict[str, Any]):
        super().__init__()
        self.network, self.about, self.classes = network, about, list(about["classes"])
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        mean = self.about.get("mean")  # a network of the Python API need not state it
        channels = len(mean) if mean else "C"
        if not isinstance(images, Tensor) or images.dim() != 4 or (mean and images.shape[1] != channels):
            found = tuple(images.shape) if hasattr(images, "shape") else type(images).__name__
            raise ValueError(f"Expected images as a tensor (N, {channels}, H, W), not {found}.")
        if images.dtype == torch.uint8 and not mean:
            raise ValueError("The file states no mean and std, so normalized float images are needed, not uint8.")
        if images.is_floating_point() and len(images) and images.min() >= 0:
            warnings.warn("Float images must be normalized, but these have no negative values.", stacklevel=2)
        if images.dtype == torch.uint8:
            images = Normalizer(self.about["mean"], self.about["std"], images.device)(images)
        logits: Tensor = self.network(images)
        return logits


def load(path: str | Path, device: str = "cpu", network: nn.Module | None = None) -> QuantizedNetwork:
    """The quantized network of a `quantized_w<bits>.safetensors`. The file contains the architecture.

    The network takes uint8 images (N, C, H, W), or float images normalized by `about["mean"]` and `about["std"]`.
    `network` is needed for a network of your own if its source file has moved or changed: an instance of its class,
    which stays as it is. A file never decides which other code runs.

    Raises `UserError` if the file is missing, damaged or not a quantized network.
    """
    try:
        about = read_packed(Path(path))[1]
        network = copy_network(unwrapped(network)).cpu().float() if network is not None else _built(Path(path), about)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = "it has no metadata of a quantized network" if isinstance(error, KeyError | TypeError) else error
        raise UserError(
            f"{path} is not a quantized network saved by ptq_exp ({reason}). "
            f"Give a job's quantized_w<bits>.safetensors."
        ) from error
    if about.get("contiguous"):
        contiguous_images(network)
    if about["model"].get("instance") and not returns_only_logits(network):
        only_logits(network)
    quantized = load_quantized(Path(path), network)[0]
    if not about.get("contiguous"):
        channels_last(quantized)  # as when it was saved: sums in another order differ in their last bits
    return QuantizedNetwork(quantized, about).to(device)


def _built(path: Path, about: dict[str, Any]) -> nn.Module:
    options = dict(about["model"])
    if options["architecture"] == "custom":
        name = str(options["target"]).rpartition(":")[2].rpartition(".")[2]
        if options.get("instance"):
            raise UserError(
                f"{path} does not state how its network is built. Give an instance of its class, {options['target']}: "
                f"ptq_exp.load('{path.name}', network={name}(...))."
            )
        known = custom.trusted(options)
        if known is None:
            raise UserError(
                f"{path} needs the class {options['target']}, which is not on this machine as it was when the file was "
                f"saved. Import it and call ptq_exp.load('{path.name}', network={name}(...))."
            )
        options = {"architecture": "custom", **known}
    return build_model(classes=len(about["classes"]), **options)


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
