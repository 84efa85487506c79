"""Weights that are exactly zero, as pruning leaves them: they stay zero, or what pruning saved is lost in silence."""

import torch
from torch import Tensor

# Share of an output channel's weights from which its zeros are meant. Weights that were only trained are practically
# never exactly zero, so that dense networks lie far below; pruning that is worth storing lies far above.
SPARSE = 0.01


def groups_with_zeros(weights: dict[str, Tensor], granularity: str) -> dict[str, Tensor]:
    """For every layer which of its groups, (1,) or (C,), have a channel with so many zeros that zero must be a level.

    `granularity` is that of the ranges: with `model` all layers share one.
    """
    channels = {name: (weight == 0).flatten(1).float().mean(1) >= SPARSE for name, weight in weights.items()}
    if granularity == "channel":
        return channels
    tensors = {name: found.any().reshape(1) for name, found in channels.items()}
    if granularity == "tensor":
        return tensors
    return dict.fromkeys(weights, torch.cat(list(tensors.values())).any().reshape(1))


def zeros_of(weight: Tensor, groups: Tensor) -> Tensor | None:
    """Where `weight` is zero and has to stay so, given which of its groups have zeros; None where nowhere."""
    if not groups.any():
        return None
    return (weight == 0) & groups.reshape(-1, *[1] * (weight.dim() - 1))


def percent_zero(weight: Tensor) -> float:
    """Percent of the weights that are exactly zero."""
    return 100 * (weight == 0).double().mean().item()
