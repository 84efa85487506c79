"""Mixed precision: the sensitivity of every layer at every bit width, and the best plan within a budget."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.base.machine import silent
from ptq_exp.quantization.context import Context, Sensitivities, shown
from ptq_exp.quantization.coverage import quantized_operands
from ptq_exp.quantization.distillation import distill
from ptq_exp.quantization.grids import TWO_SIDED, stored_bits
from ptq_exp.quantization.hooks import BATCH
from ptq_exp.quantization.layers import quantized_layers
from ptq_exp.quantization.modules import counters, replace_module
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.rounding import EIGHT, round_weights
from ptq_exp.quantization.traced import Traced

IMAGES = 512  # of the calibration images, for the sensitivities
LEARNING_STEPS, LEARNED_UP_TO = 60, 3  # if rounding is learned: steps per sensitivity, and the largest bit width


def one_layer_at_a_time(
    reference: Traced, options: QuantConfig, plan: dict[str, float], rest: nn.Module | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """Yield every layer of `plan` (bits by name) with a copy of the float `reference` in which only its weights are
    quantized. With `rest`, whose other layers are already quantized, a copy of `rest` is used instead."""
    for name, layer in quantized_layers(round_weights(reference, options, plan)).items():
        single = copy.deepcopy(rest or reference.network)
        replace_module(single, name, layer)
        yield name, single


@torch.no_grad()
def sensitivities(
    reference: Traced, options: QuantConfig, images: Tensor, advance: Callable[[], None] = lambda: None
) -> Sensitivities:
    """For every layer and candidate width, the change of the predictions if only this layer's weights are quantized.

    The measure is the Kullback-Leibler divergence from the float network's prediction on normalized `images`, so
    no label is needed. If the network is distilled later, widths up to three bits are measured after a short
    distillation, with all other layers at eight bits. At these widths the loss after rounding to nearest says little
    about how much of it the rest of the network can compensate.
    """
    probe = images[:IMAGES]
    wanted = log_probabilities(reference.network, probe)
    names = list(reference.layers(options.layers))
    found: Sensitivities = {name: {} for name in names}
    learned = options.reconstruction.distill_steps > 0
    for bits in options.mixed_candidates:
        plan = dict.fromkeys(names, bits)
        if learned and bits <= LEARNED_UP_TO:
            measured = _adapted(reference, options, plan, images)
        else:
            measured = one_layer_at_a_time(reference, options, plan)
        for name, network in measured:
            found[name][bits] = divergence(network, probe, wanted)
            advance()
    return found


def _adapted(
    reference: Traced, options: QuantConfig, plan: dict[str, float], images: Tensor
) -> Iterator[tuple[str, nn.Module]]:
    rest = round_weights(reference, options, dict.fromkeys(plan, EIGHT))
    for name, network in one_layer_at_a_time(reference, options, plan, rest):
        with torch.enable_grad():
            distill(network, reference.network, images, replace(options.reconstruction, distill_steps=LEARNING_STEPS))
        yield name, network


def divergence(network: nn.Module, images: Tensor, wanted: Tensor) -> float:
    """The mean Kullback-Leibler divergence (nats) of a network's predictions from the log-probabilities `wanted`."""
    got = log_probabilities(network, images)
    return float(F.kl_div(got, wanted, log_target=True, reduction="batchmean"))


def log_probabilities(network: nn.Module, images: Tensor) -> Tensor:
    """The logarithm of the predicted probabilities (N, classes)."""
    return torch.cat([network(batch) for batch in images.split(BATCH)]).log_softmax(1)


def allocate(found: Sensitivities, weights: dict[str, int], budget: float, options: QuantConfig) -> dict[str, float]:
    """The bit widths of the layers with the smallest sum of sensitivities within `budget` bits for all weights.

    `weights` holds each layer's number of weights. This is an integer program with one binary variable per layer and
    width, and it is solved exactly. Raises `UserError` if even the smallest widths exceed the budget.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    names, widths = list(found), list(options.mixed_candidates)
    cost = np.array([found[name][bits] for name in names for bits in widths])
    size = np.array([weights[n] * stored_bits(b, options.sign_bit, options.grid) for n in names for b in widths], float)
    one_each = np.kron(np.eye(len(names)), np.ones(len(widths)))
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(size[None], -np.inf, budget)]
    # Sensitivities span six orders of magnitude. Scaling keeps the small ones above the solver's tolerance.
    largest = cost.max() if cost.max() > 0 else 1.0  # the network may give every image the same output
    with silent():
        solved = milp(
            cost / largest * 1e4, integrality=np.ones_like(cost), bounds=Bounds(0, 1), constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )  # fmt: skip
    if solved.x is None:
        total = sum(weights.values())
        smallest = sum(weights[n] * min(stored_bits(b, options.sign_bit, options.grid) for b in widths) for n in names)
        raise UserError(
            f"No plan fits {budget / total:.2f} bits per weight: the smallest plan with "
            f"quant.mixed_candidates={widths} has {smallest / total:.2f}."
        )
    chosen = solved.x.reshape(len(names), len(widths)).argmax(1)
    return {name: widths[index] for name, index in zip(names, chosen, strict=True)}


def pareto(
    found: Sensitivities, weights: dict[str, int], options: QuantConfig, points: int = 25
) -> list[dict[str, float]]:
    """Mean bits and total sensitivity of the best plans for budgets between the smallest and the largest plan."""
    total = sum(weights.values())
    ends = [stored_bits(bits, options.sign_bit, options.grid) for bits in options.mixed_candidates]
    curve = []
    for mean in np.linspace(min(ends), max(ends), points):
        plan = allocate(found, weights, mean * total + 1e-6, options)
        bits = sum(weights[n] * stored_bits(b, options.sign_bit, options.grid) for n, b in plan.items())
        curve.append({"bits_mean": bits / total, "sensitivity": sum(found[n][b] for n, b in plan.items())})
    return curve


def plan_mixed(context: Context) -> tuple[dict[str, float], Sensitivities]:
    """The plan for the budget in the options, and the sensitivities behind it. The budget is `mean_bits`, or
    `size_budget` bytes, or by default the size with the context's bits in every layer."""
    options, reference = context.options, context.traced
    layers = reference.layers(options.layers)
    weights = {name: layer.weight.numel() for name, layer in layers.items()}
    total = sum(weights.values())
    if options.size_budget is not None:
        budget = 8.0 * options.size_budget - _bits_besides_codes(reference, options)
    else:
        budget = (options.mean_bits or stored_bits(context.bits, options.sign_bit, options.grid)) * total
    # Sensitivities depend on the method, not on the budget.
    method = replace(options, act_bits=None, bits=0, mean_bits=None, size_budget=None, name="")

    def measure() -> Sensitivities:
        torch.manual_seed(context.calibration.seed)
        steps = len(layers) * len(method.mixed_candidates)
        with shown(context.progress, "Measuring sensitivities", steps) as advance:
            return sensitivities(reference, method, context.images, advance)

    found = context.calibration.once(("sensitivities", context.reference, repr(method)), measure)
    return allocate(found, weights, budget + 1e-6, options), found


def _bits_besides_codes(reference: Traced, options: QuantConfig) -> int:
    """Bits that a quantized network stores as float32: unquantized values, scales, and values added by quantization."""
    layers, state = reference.layers(options.layers), reference.network.state_dict()
    weights, skipped = sum(layer.weight.numel() for layer in layers.values()), counters(reference.network)
    rest = sum(v.numel() for k, v in state.items() if k not in skipped) - weights
    scales = sum(layer.weight.shape[0] if options.granularity == "channel" else 1 for layer in layers.values())
    per_scale = 2 if options.grid in TWO_SIDED else 1  # with a zero-point
    # Quantization adds activation ranges, and biases to layers without one. The image has no range of its own.
    operands = sum(quantized_operands(reference, options).values())
    inputs = len(layers) - (not options.quantizes_image)
    ranges = inputs + operands if options.act_bits is not None else 0
    biases = sum(layer.weight.shape[0] for layer in layers.values() if layer.bias is None)
    return 32 * (rest + per_scale * scales + ranges + biases * options.bias_correction)
