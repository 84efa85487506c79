"""The range with the smallest rounding error."""

import torch
from torch import Tensor

from ptq_exp.quantization.grids import TWO_SIDED, parameters
from ptq_exp.quantization.ranges import Range, RangeContext, alpha_rule


@alpha_rule("mse")
def mse(groups: Tensor, context: RangeContext) -> Range:
    """The range with the smallest mean squared rounding error, searched on 100 candidates per side."""
    return _smallest_error(groups, context, 2.0)


@alpha_rule("lp")
def lp(groups: Tensor, context: RangeContext) -> Range:
    """The range with the smallest mean error to the power `quant.lp_norm` (Nahshan et al. 2021 use 2.4)."""
    return _smallest_error(groups, context, context.norm)


def _smallest_error(groups: Tensor, context: RangeContext, power: float) -> Range:
    """Shrink the range from both ends. An asymmetric range is first shrunk as a whole, then at each end separately."""
    low, high = groups.amin(dim=1), groups.amax(dim=1)
    if context.kind not in TWO_SIDED:
        high = torch.maximum(high, -low)
        low = -high
    best = torch.full_like(high, torch.inf)
    best_low, best_high = low.clone(), high.clone()

    def attempt(candidate_low: Tensor, candidate_high: Tensor) -> None:
        nonlocal best, best_low, best_high
        scale, zero_point = parameters(context.grid, context.kind, candidate_low, candidate_high, context.zeros)
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
