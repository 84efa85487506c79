"""Channels of equal magnitude where they are concatenated for batch norms."""

from typing import Any

import torch
from torch import nn

from ptq_exp.networks.graph import Graph, concatenated
from ptq_exp.quantization.context import Context
from ptq_exp.quantization.steps.step import Step


class BalanceChannels(Step):
    """Divide the channels that a convolution adds to a dense block by their magnitude, and correct the batch norms.

    Channels that are concatenated share the levels of their part. A batch norm behind them multiplies the rounding
    errors of small channels, so that a few large channels of the same part would cost most of the accuracy.
    """

    name = "balance channels"
    reads = ("act_bits", "act_coverage")

    def run(self, context: Context) -> None:
        unfolded = any(isinstance(module, nn.BatchNorm2d) for module in context.reference.modules())
        if unfolded and context.options.act_bits is not None and context.options.act_coverage == "all":
            context.change_reference(balance)


@torch.no_grad()
def balance(model: nn.Module) -> None:
    """Divide the channels of each `concatenated` convolution by their root mean square, in place.

    The root mean squares are the smallest in the running statistics of the batch norms. The function of the network
    stays the same: the running statistics of all batch norms of these channels are divided, too.
    """
    for found in concatenated(Graph(model)):
        conv: Any = model.get_submodule(found.layer)
        norms: list[tuple[Any, slice]] = [
            (model.get_submodule(name), slice(first, first + len(conv.weight))) for name, first in found.norms
        ]
        factor = torch.stack([_allowed(norm, own) for norm, own in norms]).amin(0)
        conv.weight.div_(factor.view(-1, 1, 1, 1))
        if conv.bias is not None:
            conv.bias.div_(factor)
        for norm, own in norms:
            norm.running_mean[own] /= factor
            norm.running_var[own] = ((norm.running_var[own] + norm.eps) / factor**2 - norm.eps).clamp_(min=0)


def _allowed(norm: nn.BatchNorm2d, own: slice) -> torch.Tensor:
    """The root mean square of each channel, at most what leaves a positive variance beside `eps`."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    variance = norm.running_var[own]
    root = torch.sqrt(variance + norm.running_mean[own] ** 2)
    factor = torch.minimum(root, torch.sqrt((variance + norm.eps) / norm.eps))
    return torch.where(factor > 0, factor, 1)
