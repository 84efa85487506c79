"""Equalization of the weight ranges of consecutive layers."""

from typing import Any

import torch
from torch import nn

from ptq_exp.base.errors import UserError
from ptq_exp.networks.graph import layer_pairs
from ptq_exp.quantization.context import Context
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.steps.step import Step


class Equalize(Step):
    """Equalize the layers of the float network."""

    name = "equalize"
    reads = ("equalize", "fold_batch_norm")

    def check(self, options: QuantConfig) -> None:
        if options.equalize and not options.fold_batch_norm:
            raise UserError(
                "quant.equalize=true needs quant.fold_batch_norm=true, since it moves scale between layers."
            )

    def run(self, context: Context) -> None:
        if context.options.equalize:
            context.change_reference(equalize)


@torch.no_grad()
def equalize(model: nn.Module, sweeps: int = 20) -> None:
    """Equalize the weight ranges per channel within every unbranched pair of layers, in place.

    Channel i is divided by s_i in the first layer and multiplied by s_i in the second, with
    s_i = sqrt(r1_i r2_i) / r2_i (Nagel et al. 2019, "Data-Free Quantization", equation 11). The function of the network
    stays the same. Batch norm must be folded.
    """
    pairs: list[Any] = [tuple(map(model.get_submodule, names)) for names in layer_pairs(model)]
    for _ in range(sweeps):
        for first, second in pairs:
            groups = second.groups if isinstance(second, nn.Conv2d) else 1
            if groups != 1 or second.weight.shape[1] != first.weight.shape[0]:
                continue
            rows = first.weight.flatten(1).abs().amax(1)
            columns = second.weight.transpose(0, 1).flatten(1).abs().amax(1)
            factor = torch.sqrt(rows * columns) / columns
            # Skip channels without weights, or with weights too small for the arithmetic.
            usable = (rows > 0) & (columns > 0) & (factor > 0) & torch.isfinite(factor)
            factor = torch.where(usable, factor, torch.ones_like(rows))
            first.weight.div_(factor.view(-1, *[1] * (first.weight.dim() - 1)))
            if first.bias is not None:
                first.bias.div_(factor)
            second.weight.mul_(factor.view(1, -1, *[1] * (second.weight.dim() - 2)))
