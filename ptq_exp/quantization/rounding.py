"""The bit width of every quantized layer, and rounding of its weights to nearest."""

import fnmatch

from torch import nn

from ptq_exp.base.errors import UserError, did_you_mean
from ptq_exp.networks.graph import Graph
from ptq_exp.quantization.effective_weights import uses_parameter
from ptq_exp.quantization.grids import parameters, weight_grid
from ptq_exp.quantization.layers import QuantizedLayer
from ptq_exp.quantization.modules import replace_module
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.ranges import RangeContext, find_ranges
from ptq_exp.quantization.sparsity import groups_with_zeros, zeros_of

EIGHT = 8


def target_layers(model: nn.Module, kinds: str = "conv") -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers whose weights can be quantized, by name, in network order; `kinds` is conv or all.

    Layers whose forward function computes other weights than their parameter are left out.
    """
    wanted = nn.Conv2d if kinds == "conv" else nn.Conv2d | nn.Linear
    found = {name: module for name, module in model.named_modules() if isinstance(module, wanted)}
    return {name: module for name, module in found.items() if uses_parameter(module)}


def first_and_last(model: nn.Module, kinds: str = "conv") -> tuple[str, str]:
    """The first and the last of these layers that run. If the network cannot be traced, its own order counts."""
    layers = target_layers(model, kinds)
    try:
        graph = Graph(model)
    except UserError:
        called = []
    else:
        called = [name for node in graph.nodes if (name := str(node.target)) in layers and node.op == "call_module"]
    # Layers inside a module that cannot be traced may be the first or the last.
    ordered = called if set(called) == set(layers) else list(layers)
    return ordered[0], ordered[-1]


def plan_bits(model: nn.Module, options: QuantConfig, bits: int) -> dict[str, float]:
    """The bit width of every quantized layer. A pattern overrides the policy for the first and the last layer.

    Raises `UserError` for a pattern in `quant.layer_bits` that matches no layer.
    """
    names = list(target_layers(model, options.layers))
    plan: dict[str, float] = dict.fromkeys(names, bits)
    ends = set(first_and_last(model, options.layers)) if options.first_and_last != "same" else set()
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


def round_weights(network: nn.Module, options: QuantConfig, plan: dict[str, float]) -> None:
    """Replace the layers of `plan` by quantized layers, rounded to nearest, in place."""
    everything = target_layers(network, options.layers)
    layers = {name: everything[name] for name in plan}
    kind = "conv" if target_layers(network) else options.layers
    first_conv = everything[first_and_last(network, kind)[0]].weight.detach()
    grids = {name: weight_grid(bits, options.sign_bit, options.grid) for name, bits in plan.items()}
    weights = {name: layer.weight.detach() for name, layer in layers.items()}
    zeros = groups_with_zeros(weights, options.granularity)
    numbers = (options.alpha_multiplier, options.percentile, options.lp_norm)
    contexts = {
        name: RangeContext(first_conv, grid, options.grid, *numbers, zeros[name]) for name, grid in grids.items()
    }
    ranges = find_ranges(weights, contexts, options.alpha_rule, options.granularity)
    for name, layer in layers.items():
        scale, zero_point = parameters(grids[name], options.grid, *ranges[name], zeros[name])
        stay = zeros_of(weights[name], zeros[name])
        replace_module(network, name, QuantizedLayer(layer, grids[name], scale, zero_point, plan[name], stay))
