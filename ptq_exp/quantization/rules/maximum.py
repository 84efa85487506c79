"""The full range, from the smallest to the largest weight."""

from torch import Tensor

from ptq_exp.quantization.ranges import Range, RangeContext, alpha_rule


@alpha_rule("max")
def maximum(groups: Tensor, context: RangeContext) -> Range:
    """From the smallest to the largest weight of the group: nothing is clipped. The multiplier is not used."""
    return groups.amin(dim=1), groups.amax(dim=1)
