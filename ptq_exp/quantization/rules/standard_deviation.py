"""Alpha as a multiple of a standard deviation."""

from torch import Tensor

from ptq_exp.quantization.ranges import Range, RangeContext, alpha_rule


@alpha_rule("first_conv_std")
def first_conv_std(groups: Tensor, context: RangeContext) -> Range:
    """multiplier * population std of the first convolution's weights, for every group (the notebook)."""
    alpha = (context.multiplier * context.first_conv.std(correction=0)).expand(len(groups))
    return -alpha, alpha


@alpha_rule("std")
def std(groups: Tensor, context: RangeContext) -> Range:
    """multiplier * population std of the group, on both sides of zero."""
    alpha = context.multiplier * groups.std(dim=1, correction=0)
    return -alpha, alpha
