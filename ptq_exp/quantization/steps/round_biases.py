"""Biases as integer runtimes hold them: in an int32 accumulator."""

import logging

import torch
from torch import nn

from ptq_exp.base.errors import UserError
from ptq_exp.quantization.context import Context
from ptq_exp.quantization.grids import FLOAT_ZERO_POINT
from ptq_exp.quantization.layers import QuantizedLayer, quantized_layers
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.steps.step import Step

log = logging.getLogger(__name__)


class RoundBiases(Step):
    """Round the biases of layers with quantized inputs to multiples of the scale of their products."""

    name = "round biases"
    reads = ("integer_biases", "act_bits", "grid")

    def check(self, options: QuantConfig) -> None:
        if options.integer_biases and options.act_bits is None:
            raise UserError("quant.integer_biases=true needs quantized activations. Set quant.act_bits.")
        if options.integer_biases and options.grid == FLOAT_ZERO_POINT:
            raise UserError(
                "quant.integer_biases=true needs a grid with zero among its levels, for example quant.grid=symmetric."
            )

    def run(self, context: Context) -> None:
        if context.options.integer_biases:
            for name, layer in quantized_layers(context.network).items():
                if too_large := round_bias(layer):
                    log.warning("%s: %d biases need more than the 32 bits of an accumulator.", name, too_large)


@torch.no_grad()
def round_bias(layer: QuantizedLayer) -> int:
    """Round the bias to a multiple of (scale of the input) x (scale of the weights of its channel), in place
    (Jacob et al. 2018, section 2.4). Returns how many multiples exceed int32, as where the weights of a channel are
    nearly zero."""
    bias = layer.layer.bias
    if bias is None or layer.activation is None:
        return 0
    step = layer.activation.scale.double() * layer.scale.double().flatten()
    codes = torch.round(bias.double() / step)
    layer.layer.bias = nn.Parameter((codes * step).to(bias.dtype), requires_grad=False)
    return int((codes.abs() >= 2**31).sum())
