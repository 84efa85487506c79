"""Which layers are quantized to how many bits, and their weights rounded to nearest."""

import fnmatch

from torch import nn

from ptq_exp.base.errors import UserError, did_you_mean
from ptq_exp.quantization.grids import parameters, weight_grid
from ptq_exp.quantization.layers import QuantizedLayer
from ptq_exp.quantization.modules import replace_module
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.ranges import RangeContext, find_ranges
from ptq_exp.quantization.sparsity import groups_with_zeros, zeros_of

EIGHT = 8


def target_layers(model: nn.Module, kinds: str = "conv") -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers whose weights are quantized, by name, in the network's order; `kinds` is conv or all."""
    wanted = nn.Conv2d if kinds == "conv" else nn.Conv2d | nn.Linear
    return {name: module for name, module in model.named_modules() if isinstance(module, wanted)}


def plan_bits(model: nn.Module, config: QuantConfig, bits: int) -> dict[str, float]:
    """The bit width of every layer that is quantized: a pattern overrules the policy for first and last layer.

    Raises `UserError` for a pattern in `quant.layer_bits` that no layer's name matches.
    """
    names = list(target_layers(model, config.layers))
    plan: dict[str, float] = dict.fromkeys(names, bits)
    if config.first_and_last == "eight":
        plan |= {names[0]: EIGHT, names[-1]: EIGHT}
    chosen: set[str] = set()
    for pattern, width in config.layer_bits.items():
        matched = fnmatch.filter(names, pattern)
        chosen |= set(matched)
        if not matched:
            raise UserError(
                f"quant.layer_bits: '{pattern}' matches no layer.{did_you_mean(pattern, names)} "
                f"Layers: {', '.join(names)}."
            )
        plan |= dict.fromkeys(matched, width)
    if config.first_and_last == "float":
        for name in {names[0], names[-1]} - chosen:
            del plan[name]
    return plan


def round_weights(network: nn.Module, config: QuantConfig, plan: dict[str, float]) -> None:
    """Replace the layers of `plan` by quantized ones, rounded to nearest, in place."""
    everything = target_layers(network, config.layers)
    layers = {name: everything[name] for name in plan}
    first_conv = next(iter(everything.values())).weight.detach()
    grids = {name: weight_grid(bits, config.sign_bit, config.grid) for name, bits in plan.items()}
    weights = {name: layer.weight.detach() for name, layer in layers.items()}
    zeros = groups_with_zeros(weights, config.granularity)
    numbers = (config.alpha_multiplier, config.percentile, config.lp_norm)
    contexts = {
        name: RangeContext(first_conv, grid, config.grid, *numbers, zeros[name]) for name, grid in grids.items()
    }
    ranges = find_ranges(weights, contexts, config.alpha_rule, config.granularity)
    for name, layer in layers.items():
        scale, zero_point = parameters(grids[name], config.grid, *ranges[name], zeros[name])
        stay = zeros_of(weights[name], zeros[name])
        replace_module(network, name, QuantizedLayer(layer, grids[name], scale, zero_point, plan[name], stay))
