"""Alpha rules: how the clipping range of a group of weights is found.

A rule is a function `(groups, context) -> (low, high)`, in a file of its own or here, with one `@alpha_rule` line.
`groups` has shape (G, n): one row for each group of weights that shares a range; `low` and `high` have shape (G,).
On a symmetric grid alpha, the clipping value, is the larger magnitude of the two.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ptq_exp.errors import UserError
from ptq_exp.quantization.grids import TWO_SIDED, Grid, parameters


@dataclass(frozen=True)
class RangeContext:
    """What a rule may look at besides the weights themselves."""

    first_conv: Tensor  # float weights of the network's first convolution
    grid: Grid  # what the weights will be rounded to
    kind: str  # `quant.grid`
    multiplier: float = 3.0  # `quant.alpha_multiplier`
    percentile: float = 99.9  # `quant.percentile`
    norm: float = 2.4  # `quant.lp_norm`


Range = tuple[Tensor, Tensor]
AlphaRule = Callable[[Tensor, RangeContext], Range]
ALPHA_RULES: dict[str, AlphaRule] = {}


def alpha_rule(name: str) -> Callable[[AlphaRule], AlphaRule]:
    """Make a rule available as `quant.alpha_rule=<name>`."""

    def register(rule: AlphaRule) -> AlphaRule:
        ALPHA_RULES[name] = rule
        return rule

    return register


@alpha_rule("first_conv_std")
def first_conv_std(groups: Tensor, context: RangeContext) -> Range:
    """multiplier * population std of the first convolution's weights, whatever the group (the notebook)."""
    alpha = (context.multiplier * context.first_conv.std(correction=0)).expand(len(groups))
    return -alpha, alpha


@alpha_rule("std")
def std(groups: Tensor, context: RangeContext) -> Range:
    """multiplier * population std of the group, on both sides of zero."""
    alpha = context.multiplier * groups.std(dim=1, correction=0)
    return -alpha, alpha


@alpha_rule("max")
def maximum(groups: Tensor, context: RangeContext) -> Range:
    """From the smallest to the largest weight of the group: nothing is clipped. The multiplier plays no part."""
    return groups.amin(dim=1), groups.amax(dim=1)


@alpha_rule("percentile")
def percentile(groups: Tensor, context: RangeContext) -> Range:
    """The middle `percentile` percent of the group's weights; on a symmetric grid, of their magnitudes."""
    share = context.percentile / 100
    if context.kind in TWO_SIDED:
        ends = torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=groups.dtype, device=groups.device)
        low, high = torch.quantile(groups.double(), ends.double(), dim=1).to(groups.dtype)
        return low, high
    alpha = torch.quantile(groups.abs().double(), share, dim=1).to(groups.dtype)
    return -alpha, alpha


@alpha_rule("mse")
def mse(groups: Tensor, context: RangeContext) -> Range:
    """The range with the smallest mean squared rounding error, searched on 100 candidates a side."""
    return _smallest_error(groups, context, 2.0)


@alpha_rule("lp")
def lp(groups: Tensor, context: RangeContext) -> Range:
    """The range with the smallest mean error to the power `quant.lp_norm` (Nahshan et al. 2021 use 2.4)."""
    return _smallest_error(groups, context, context.norm)


def _smallest_error(groups: Tensor, context: RangeContext, power: float) -> Range:
    """Shrink the range from both ends; an asymmetric one first as a whole, then each end on its own."""
    low, high = groups.amin(dim=1), groups.amax(dim=1)
    if context.kind not in TWO_SIDED:
        high = torch.maximum(high, -low)
        low = -high
    best = torch.full_like(high, torch.inf)
    best_low, best_high = low.clone(), high.clone()

    def attempt(candidate_low: Tensor, candidate_high: Tensor) -> None:
        nonlocal best, best_low, best_high
        scale, zero_point = parameters(context.grid, context.kind, candidate_low, candidate_high)
        rounded = context.grid.fake_quantize(groups, scale[:, None], zero_point[:, None])
        error = (rounded - groups).abs().pow(power).mean(dim=1)
        better = error < best
        best = torch.where(better, error, best)
        best_low = torch.where(better, candidate_low, best_low)
        best_high = torch.where(better, candidate_high, best_high)

    for share in torch.linspace(1.0, 0.05, 100).tolist():
        attempt(low * share, high * share)
    if context.kind in TWO_SIDED:
        for share in torch.linspace(1.25, 0.5, 31).tolist():
            attempt(best_low * share, best_high)
        for share in torch.linspace(1.25, 0.5, 31).tolist():
            attempt(best_low, best_high * share)
    return best_low, best_high


def find_ranges(
    weights: dict[str, Tensor], contexts: dict[str, RangeContext], rule: str, granularity: str
) -> dict[str, Range]:
    """The clipping range of every layer: two tensors of shape (1,), or (C,) for each output channel.

    `granularity` says which weights share a range: those of the `model`, of a `tensor` or of an output
    `channel`. Raises `UserError` where a range is not a number.
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
            raise UserError(f"quant.alpha_rule={rule} gives no number for {name}: are its weights finite?")
    return ranges
