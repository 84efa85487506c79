"""The bit width of every quantized layer, and rounding of its weights to nearest."""

import copy
import fnmatch

from torch import nn

from ptq_exp.base.errors import UserError, did_you_mean
from ptq_exp.quantization.grids import parameters, weight_grid
from ptq_exp.quantization.layers import QuantizedLayer
from ptq_exp.quantization.modules import replace_module
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.ranges import RangeContext, find_ranges
from ptq_exp.quantization.sparsity import groups_with_zeros, zeros_of
from ptq_exp.quantization.traced import Traced

EIGHT = 8


def plan_bits(reference: Traced, options: QuantConfig, bits: int) -> dict[str, float]:
    """The bit width of every quantized layer. A pattern overrides the policy for the first and the last layer.

    Raises `UserError` for a pattern in `quant.layer_bits` that matches no layer.
    """
    names = list(reference.layers(options.layers))
    plan: dict[str, float] = dict.fromkeys(names, bits)
    ends = set(reference.first_and_last(options.layers)) if options.first_and_last != "same" else set()
    if options.first_and_last == "eight":
        plan |= dict.fromkeys(ends, EIGHT)
    chosen: set[str] = set()
    for pattern, width in options.layer_bits.items():
        matched = fnmatch.filter(names, pattern)
        chosen |= set(matched)
        if not matched:
            raise UserError(
                f"quant.layer_bits: '{pattern}' matches no layer.{did_you_mean(pattern, names)} "
                f"Layers: {', '.join(names)}."
            )
        plan |= dict.fromkeys(matched, width)
    if options.first_and_last == "float":
        for name in ends - chosen:
            del plan[name]
    return plan


def round_weights(reference: Traced, options: QuantConfig, plan: dict[str, float]) -> nn.Module:
    """A copy of the float network with quantized layers, rounded to nearest, in place of the layers of `plan`."""
    everything = reference.layers(options.layers)
    kind = "conv" if reference.layers("conv") else options.layers
    first_conv = everything[reference.first_and_last(kind)[0]].weight.detach()
    grids = {name: weight_grid(bits, options.sign_bit, options.grid) for name, bits in plan.items()}
    weights = {name: everything[name].weight.detach() for name in plan}
    zeros = groups_with_zeros(weights, options.granularity)
    numbers = (options.alpha_multiplier, options.percentile, options.lp_norm)
    contexts = {
        name: RangeContext(first_conv, grid, options.grid, *numbers, zeros[name]) for name, grid in grids.items()
    }
    ranges = find_ranges(weights, contexts, options.alpha_rule, options.granularity)
    network = copy.deepcopy(reference.network)
    for name in plan:
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        scale, zero_point = parameters(grids[name], options.grid, *ranges[name], zeros[name])
        stay = zeros_of(weights[name], zeros[name])
        replace_module(network, name, QuantizedLayer(layer, grids[name], scale, zero_point, plan[name], stay))
    return network
