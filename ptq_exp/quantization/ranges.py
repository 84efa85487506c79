"""Clipping ranges of a network's weights, found by one of the rules in `ptq_exp.quantization.rules`."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ptq_exp.base.errors import UserError
from ptq_exp.quantization.grids import Grid


@dataclass(frozen=True)
class RangeContext:
    """The inputs of a rule besides the weights."""

    first_conv: Tensor  # float weights of the network's first convolution
    grid: Grid  # the grid that the weights will be rounded to
    kind: str  # `quant.grid`
    multiplier: float = 3.0  # `quant.alpha_multiplier`
    percentile: float = 99.9  # `quant.percentile`
    norm: float = 2.4  # `quant.lp_norm`
    zeros: Tensor | None = None  # (G,) bool: groups that contain exact zeros, so that zero must be a level


Range = tuple[Tensor, Tensor]
AlphaRule = Callable[[Tensor, RangeContext], Range]
ALPHA_RULES: dict[str, AlphaRule] = {}  # filled by the files in `rules`


def alpha_rule(name: str) -> Callable[[AlphaRule], AlphaRule]:
    """Make a rule available as `quant.alpha_rule=<name>`."""

    def register(rule: AlphaRule) -> AlphaRule:
        ALPHA_RULES[name] = rule
        return rule

    return register


def find_ranges(
    weights: dict[str, Tensor], contexts: dict[str, RangeContext], rule: str, granularity: str
) -> dict[str, Range]:
    """The clipping range of every layer: two tensors of shape (1,), or (C,) with one value per output channel.

    `granularity` sets which weights share a range: those of the `model`, of a `tensor` or of an output `channel`.
    Raises `UserError` if a range is not finite.
    """
    find = ALPHA_RULES[rule]
    if granularity == "model":
        everything = torch.cat([weight.flatten() for weight in weights.values()])
        shared = find(everything[None], next(iter(contexts.values())))
        ranges = dict.fromkeys(weights, shared)
    else:
        ranges = {
            name: find(weight.flatten(1) if granularity == "channel" else weight.reshape(1, -1), contexts[name])
            for name, weight in weights.items()
        }
    for name, (low, high) in ranges.items():
        if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise UserError(f"quant.alpha_rule={rule} gives no finite range for {name}. Are its weights finite?")
    return ranges


importlib.import_module("ptq_exp.quantization.rules")  # last, because its files import this module
