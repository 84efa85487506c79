"""Adaptation of a network to how it is called here: images in any memory format in, logits (N, classes) out."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn


@fx.wrap  # a traced network must not be traced into it again
def logits_of(output: Any) -> Any:
    """The logits in a network's output: a tensor, the first tensor of a tuple, or the entry `logits` of a mapping."""
    if isinstance(output, Tensor):
        return output.flatten(1) if output.dim() > 2 and output.shape[2:].numel() == 1 else output
    if isinstance(output, dict):  # also the outputs of transformers, which are ordered dictionaries
        return logits_of(output["logits"] if "logits" in output else next(iter(output.values())))
    if isinstance(output, Iterable):
        return logits_of(next(iter(output)))
    return logits_of(output.logits)


def only_logits(model: nn.Module) -> None:
    """Make `model` return its logits alone, in place."""
    model.register_forward_hook(_logits_hook)


def contiguous_images(model: nn.Module) -> None:
    """Make `model` compute in PyTorch's default memory format, in place. `view` in its forward function may need it."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = standard_strides(tensor.data)
    model.register_forward_pre_hook(_contiguous_hook)


def channels_last(model: nn.Module) -> None:
    """Store the weights of convolutions in channels-last order, in place. Other tensors of four dimensions keep theirs,
    which the code of the network may rely on (`torch.view_as_complex`)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.dim() == 4:
                    tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def returns_only_logits(model: nn.Module) -> bool:
    """Whether `only_logits` was applied to `model`."""
    return _logits_hook in model._forward_hooks.values()


def needs_contiguous_images(model: nn.Module) -> bool:
    """Whether `contiguous_images` was applied to `model`, or to the network that `expose` made it of."""
    exposed = getattr(model, "meta", {}).get("contiguous", False)
    return exposed or _contiguous_hook in model._forward_pre_hooks.values()


def _logits_hook(_: nn.Module, given: Any, output: Any) -> Any:
    return logits_of(output)


def _contiguous_hook(_: nn.Module, given: Any) -> Any:
    return tuple(standard_strides(x) if isinstance(x, Tensor) else x for x in given)


@fx.wrap
def standard_strides(x: Tensor) -> Tensor:
    """`x` in PyTorch's default memory format. `contiguous` keeps the other one for tensors of a single channel, because
    they are in both, and convolutions would go on with it."""
    wanted = torch.empty(x.shape, device="meta").stride()
    return x if x.stride() == wanted else torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x)


@fx.wrap
def of_shape(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The images themselves. Raises `ValueError` if they have another shape (C, H, W) than a trace was made for."""
    if tuple(images.shape[1:]) != shape:
        raise ValueError(f"The code of the network depends on the size of its images, which was {shape}.")
    return images
