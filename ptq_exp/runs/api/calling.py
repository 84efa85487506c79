"""Networks and images as a user gives them, made ready for the package."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ptq_exp.base.errors import UserError
from ptq_exp.networks.graph import check_trace
from ptq_exp.networks.graph.calling import channels_last, needs_contiguous_images, only_logits
from ptq_exp.quantization.layers import OPAQUE
from ptq_exp.quantization.modules import copy_network, unwrapped
from ptq_exp.runs.fitting import output_of


def as_given(images: Tensor) -> Tensor:
    """The images in the memory format of `Normalizer`, in place of a normalization."""
    return images.to(torch.float32, memory_format=torch.channels_last)


def exact() -> contextlib.AbstractContextManager[None]:
    """Float32 means float32, and results repeat on CUDA, too, as in a job (see `pick_device`)."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def device_of(network: nn.Module) -> torch.device:
    """The device of the parameters; the CPU for a network without any."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


def ready_copy(network: nn.Module, images: Tensor) -> nn.Module:
    """A copy in evaluation mode and in float32 that returns only logits (N, classes) for normalized `images`.

    Raises `UserError` if the network does not accept the images, or returns something else.
    """
    network = unwrapped(network)
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise UserError(
            "The network is a TorchScript program, or contains one, whose layers are fixed. Give the nn.Module behind "
            "it."
        )
    if lazy := [name for name, tensor in network.named_parameters() if is_lazy(tensor)]:
        raise UserError(f"Some layers have no size yet ({', '.join(lazy[:3])}). Call the network with images once.")
    copy = copy_network(network).eval().float()
    if not needs_contiguous_images(copy):
        channels_last(copy)
    image = as_given(images[:1].to(device_of(copy)))
    try:
        logits = output_of(copy, image)
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            only_logits(copy)
            logits = output_of(copy, image)
    except Exception as error:  # whatever the user's code raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"The network does not accept images {tuple(images.shape)}: {reason}.") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"The network returns {shape} for one image, but logits (1, classes) are needed.")
    check_trace(copy, image, OPAQUE)
    return copy


def check_images(images: object) -> None:
    """Raise `UserError` unless `images` is a tensor (N, C, H, W) of finite floating-point numbers."""
    if not isinstance(images, Tensor) or images.dim() != 4 or not len(images):
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise UserError(f"Expected normalized images as a tensor (N, C, H, W), not {found}.")
    if not images.is_floating_point():
        raise UserError(
            f"Expected normalized images in floating point, not {images.dtype}. Normalize them as in the training of "
            f"the network: (images / 255 - mean) / std."
        )
    if not bool(images.isfinite().all()):
        raise UserError("Some values of the images are not finite.")


def as_labels(labels: Tensor | Sequence[int], images: Tensor) -> Tensor:
    """The labels as int64 (N,) on the device of `images`. Raises `UserError` unless there is one for each image."""
    found = torch.as_tensor(labels, device=images.device)
    if found.dim() != 1 or found.is_floating_point() or found.dtype == torch.bool or len(found) != len(images):
        raise UserError(
            f"Expected {len(images)} integer labels, one for each image, not {found.dtype} {tuple(found.shape)}."
        )
    return found.long()
