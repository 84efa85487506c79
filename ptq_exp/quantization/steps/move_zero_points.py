"""Zero-points of channels that only batch norms read."""

from typing import Any

import torch
from torch import nn

from ptq_exp.networks.graph import Concatenated, concatenated
from ptq_exp.quantization.context import Context
from ptq_exp.quantization.grids import UniformGrid
from ptq_exp.quantization.layers import ActivationQuantizer
from ptq_exp.quantization.steps.step import Step


class MoveZeroPoints(Step):
    """Move the zero-points of a dense block's features into the biases of their convolutions and the batch norms.

    Codes and function stay the same, and integer runtimes need no pass that subtracts the zero-points. Where the
    concatenations have learned different scales for the same features, their zero-points stay.
    """

    name = "move zero-points"
    reads = ("act_bits", "act_coverage")

    def run(self, context: Context) -> None:
        graph = context.traced.graph
        if context.options.act_bits is not None and context.options.act_coverage == "all" and graph:
            for found in concatenated(graph):
                if found.direct:
                    _move(context.network, found)


@torch.no_grad()
def _move(network: nn.Module, found: Concatenated) -> None:
    quantizers: list[Any] = [network.get_submodule(f"{join}.operands.{place}") for join, place in found.joins]
    if not all(isinstance(quantizer, ActivationQuantizer) for quantizer in quantizers):
        return
    if len({(quantizer.grid.low, quantizer.grid.high, quantizer.alpha.item()) for quantizer in quantizers}) > 1:
        return
    low, scale = quantizers[0].grid.low, quantizers[0].scale
    if low == 0:
        return
    shift = -low * scale
    layer: Any = network.get_submodule(found.layer)
    conv: nn.Conv2d = layer.layer
    if conv.bias is None:
        conv.bias = nn.Parameter(conv.weight.new_zeros(len(conv.weight)), requires_grad=False)
    conv.bias += shift
    for name, first in found.norms:
        norm: Any = network.get_submodule(name)
        norm.running_mean[first : first + len(conv.weight)] += shift
    for quantizer in quantizers:
        quantizer.grid = UniformGrid(0, quantizer.grid.high - low)
        quantizer.alpha.copy_(scale * quantizer.grid.high)
