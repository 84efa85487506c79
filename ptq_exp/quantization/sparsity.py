"""Exact zeros of pruned weights. They must stay zero, or the savings of pruning are silently lost."""

import torch
from torch import Tensor

# If at least this share of an output channel's weights is zero, the zeros count as intended. Weights that were only
# trained are practically never exactly zero, so dense networks lie far below. Useful pruning lies far above.
SPARSE = 0.01


def groups_with_zeros(weights: dict[str, Tensor], granularity: str) -> dict[str, Tensor]:
    """For every layer, the groups, (1,) or (C,) bool, with a channel of so many zeros that zero must be a level.

    `granularity` is that of the ranges. With `model`, all layers share one group.
    """
    channels = {name: (weight == 0).flatten(1).float().mean(1) >= SPARSE for name, weight in weights.items()}
    if granularity == "channel":
        return channels
    tensors = {name: found.any().reshape(1) for name, found in channels.items()}
    if granularity == "tensor":
        return tensors
    return dict.fromkeys(weights, torch.cat(list(tensors.values())).any().reshape(1))


def zeros_of(weight: Tensor, groups: Tensor) -> Tensor | None:
    """A mask of the zeros in `weight` that must stay zero, given the groups with zeros, or None if there are none."""
    if not groups.any():
        return None
    return (weight == 0) & groups.reshape(-1, *[1] * (weight.dim() - 1))


def percent_zero(weight: Tensor) -> float:
    """Percent of the weights that are exactly zero."""
    return 100 * (weight == 0).double().mean().item()
