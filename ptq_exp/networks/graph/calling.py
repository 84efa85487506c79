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
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    model.register_forward_pre_hook(_contiguous_hook)


def returns_only_logits(model: nn.Module) -> bool:
    """Whether `only_logits` was applied to `model`."""
    return _logits_hook in model._forward_hooks.values()


def needs_contiguous_images(model: nn.Module) -> bool:
    """Whether `contiguous_images` was applied to `model`."""
    return _contiguous_hook in model._forward_pre_hooks.values()


def _logits_hook(_: nn.Module, given: Any, output: Any) -> Any:
    return logits_of(output)


def _contiguous_hook(_: nn.Module, given: Any) -> Any:
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in given)
