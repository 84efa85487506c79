"""A percentile of the weights: outliers are clipped."""

import torch
from torch import Tensor

from ptq_exp.quantization.grids import TWO_SIDED
from ptq_exp.quantization.ranges import Range, RangeContext, alpha_rule


@alpha_rule("percentile")
def percentile(groups: Tensor, context: RangeContext) -> Range:
    """The central `percentile` percent of the group's weights or, on a symmetric grid, of their magnitudes."""
    share = context.percentile / 100
    if context.kind in TWO_SIDED:
        ends = torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=groups.dtype, device=groups.device)
        low, high = torch.quantile(groups.double(), ends.double(), dim=1).to(groups.dtype)
        return low, high
    alpha = torch.quantile(groups.abs().double(), share, dim=1).to(groups.dtype)
    return -alpha, alpha
