"""Alpha rules: how the clipping value of a group of weights is found.

A rule is a function `(groups, context) -> alpha` in a file of its own or here, with one `@alpha_rule` line.
`groups` has shape (G, n): one row for each group of weights that shares an alpha; the result has shape (G,).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ptq_exp.errors import UserError


@dataclass(frozen=True)
class RangeContext:
    """What a rule may look at besides the weights themselves."""

    first_conv: Tensor  # float weights of the network's first convolution
    multiplier: float  # `quant.alpha_multiplier`


AlphaRule = Callable[[Tensor, RangeContext], Tensor]
ALPHA_RULES: dict[str, AlphaRule] = {}


def alpha_rule(name: str) -> Callable[[AlphaRule], AlphaRule]:
    """Make a rule available as `quant.alpha_rule=<name>`."""

    def register(rule: AlphaRule) -> AlphaRule:
        ALPHA_RULES[name] = rule
        return rule

    return register


@alpha_rule("first_conv_std")
def first_conv_std(groups: Tensor, context: RangeContext) -> Tensor:
    """multiplier * population std of the first convolution's weights, whatever the group (the notebook)."""
    return (context.multiplier * context.first_conv.std(correction=0)).expand(len(groups))


@alpha_rule("std")
def std(groups: Tensor, context: RangeContext) -> Tensor:
    """multiplier * population std of the group."""
    return context.multiplier * groups.std(dim=1, correction=0)


@alpha_rule("max")
def maximum(groups: Tensor, context: RangeContext) -> Tensor:
    """The largest magnitude of the group: nothing is clipped. The multiplier plays no part."""
    return groups.abs().amax(dim=1)


def find_alphas(weights: dict[str, Tensor], rule: str, multiplier: float, granularity: str) -> dict[str, Tensor]:
    """The clipping value of every layer, in the order of the network: shape (1,), or (C,) per output channel.

    `granularity` says which weights share an alpha: those of the `model`, of a `tensor` or of an output
    `channel`. Raises `UserError` where an alpha is not a number.
    """
    context = RangeContext(next(iter(weights.values())), multiplier)
    if granularity == "model":
        everything = torch.cat([weight.flatten() for weight in weights.values()])
        shared = ALPHA_RULES[rule](everything[None], context)
        alphas = dict.fromkeys(weights, shared)
    else:
        shape = (1, -1) if granularity == "tensor" else None
        alphas = {
            name: ALPHA_RULES[rule](weight.reshape(shape) if shape else weight.flatten(1), context)
            for name, weight in weights.items()
        }
    for name, alpha in alphas.items():
        if not torch.isfinite(alpha).all():
            raise UserError(f"quant.alpha_rule={rule} gives no number for {name}: are its weights finite?")
        # A group of equal zeros has no range: any scale represents it exactly.
        alphas[name] = torch.where(alpha > 0, alpha, torch.ones_like(alpha))
    return alphas
