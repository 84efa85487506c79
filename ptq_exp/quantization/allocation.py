"""Mixed precision: how much every layer suffers at every bit width, and the best plan that a budget allows."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.quantization.activations import additions
from ptq_exp.quantization.grids import stored_bits
from ptq_exp.quantization.layers import quantized_layers
from ptq_exp.quantization.memo import Memo
from ptq_exp.quantization.modules import replace_module
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.progress import Progress, shown
from ptq_exp.quantization.reconstruction import distill
from ptq_exp.quantization.rounding import EIGHT, round_weights, target_layers

BATCH = 256
IMAGES = 512  # of the calibration images, for the sensitivities
LEARNING_STEPS, LEARNED_UP_TO = 60, 3  # where rounding is learned: steps for one sensitivity, up to so many bits

Sensitivities = dict[str, dict[float, float]]  # layer -> bits -> mean Kullback-Leibler divergence in nats


def one_layer_at_a_time(
    reference: nn.Module, config: QuantConfig, plan: dict[str, float], rest: nn.Module | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """Every layer of `plan` (bits by name) with a copy of the float `reference` in which only its weights are
    quantized; or with a copy of `rest`, in which the other layers are quantized already."""
    everything = copy.deepcopy(reference)
    round_weights(everything, config, plan)
    for name, layer in quantized_layers(everything).items():
        single = copy.deepcopy(rest or reference)
        replace_module(single, name, layer)
        yield name, single


@torch.no_grad()
def sensitivities(
    reference: nn.Module, config: QuantConfig, images: Tensor, progress: Progress | None = None
) -> Sensitivities:
    """For every layer and candidate width, how far the logits move when only this layer's weights are quantized.

    The measure is the Kullback-Leibler divergence from the float network's prediction on normalized `images`, so
    no label is needed. Where the network is distilled later, up to three bits are measured after a short one, with
    all other layers at eight bits: what rounding to nearest destroys there says little about what the rest of
    the network can make up for.
    """
    probe = images[:IMAGES]
    wanted = _log_probabilities(reference, probe)
    names = list(target_layers(reference, config.layers))
    found: Sensitivities = {name: {} for name in names}
    learned = config.reconstruction.distill_steps > 0
    steps = len(names) * len(config.mixed_candidates)
    with shown(progress, "Measuring sensitivities", steps) as advance:
        for bits in config.mixed_candidates:
            adapt = learned and bits <= LEARNED_UP_TO
            plan = dict.fromkeys(names, bits)
            measured = (
                _adapted(reference, config, plan, images) if adapt else one_layer_at_a_time(reference, config, plan)
            )
            for name, network in measured:
                got = _log_probabilities(network, probe)
                found[name][bits] = float(F.kl_div(got, wanted, log_target=True, reduction="batchmean"))
                advance()
    return found


def _adapted(
    reference: nn.Module, config: QuantConfig, plan: dict[str, float], images: Tensor
) -> Iterator[tuple[str, nn.Module]]:
    rest = copy.deepcopy(reference)
    round_weights(rest, config, dict.fromkeys(plan, EIGHT))
    for name, network in one_layer_at_a_time(reference, config, plan, rest):
        with torch.enable_grad():
            distill(network, reference, images, replace(config.reconstruction, distill_steps=LEARNING_STEPS))
        yield name, network


def _log_probabilities(network: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([network(batch) for batch in images.split(BATCH)]).log_softmax(1)


def allocate(found: Sensitivities, weights: dict[str, int], budget: float, config: QuantConfig) -> dict[str, float]:
    """The bit width of every layer with the smallest sum of sensitivities within `budget` bits for all weights.

    `weights` counts each layer's weights. An integer program, solved exactly: one binary variable for each layer
    and width. Raises `UserError` where even the smallest widths exceed the budget.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    names, widths = list(found), list(config.mixed_candidates)
    cost = np.array([found[name][bits] for name in names for bits in widths])
    size = np.array([weights[n] * stored_bits(b, config.sign_bit, config.grid) for n in names for b in widths], float)
    one_each = np.kron(np.eye(len(names)), np.ones(len(widths)))
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(size[None], -np.inf, budget)]
    # Sensitivities span six orders of magnitude: scaled, so that the solver's tolerance does not hide the small ones.
    largest = cost.max() if cost.max() > 0 else 1.0  # the network may answer every image alike
    solved = milp(
        cost / largest * 1e4, integrality=np.ones_like(cost), bounds=Bounds(0, 1), constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )  # fmt: skip
    if solved.x is None:
        total = sum(weights.values())
        smallest = sum(weights[n] * min(stored_bits(b, config.sign_bit, config.grid) for b in widths) for n in names)
        raise UserError(
            f"No plan has {budget / total:.2f} bits a weight: with quant.mixed_candidates={widths} the smallest has "
            f"{smallest / total:.2f}."
        )
    chosen = solved.x.reshape(len(names), len(widths)).argmax(1)
    return {name: widths[index] for name, index in zip(names, chosen, strict=True)}


def pareto(
    found: Sensitivities, weights: dict[str, int], config: QuantConfig, points: int = 25
) -> list[dict[str, float]]:
    """Mean bits and summed sensitivity of the best plans for budgets between the smallest and the largest plan."""
    total = sum(weights.values())
    ends = [stored_bits(bits, config.sign_bit, config.grid) for bits in config.mixed_candidates]
    curve = []
    for mean in np.linspace(min(ends), max(ends), points):
        plan = allocate(found, weights, mean * total + 1e-6, config)
        bits = sum(weights[n] * stored_bits(b, config.sign_bit, config.grid) for n, b in plan.items())
        curve.append({"bits_mean": bits / total, "sensitivity": sum(found[n][b] for n, b in plan.items())})
    return curve


def plan_mixed(
    reference: nn.Module, config: QuantConfig, bits: int, images: Tensor, memo: Memo, progress: Progress | None = None
) -> tuple[dict[str, float], Sensitivities]:
    """The plan for the budget that `config` names: `mean_bits`, or `size_budget` bytes, or what `bits` everywhere
    would take."""
    layers = target_layers(reference, config.layers)
    weights = {name: layer.weight.numel() for name, layer in layers.items()}
    total = sum(weights.values())
    if config.size_budget is not None:
        state = reference.state_dict()
        rest = 32 * (sum(v.numel() for k, v in state.items() if not k.endswith("num_batches_tracked")) - total)
        scales = 64 * sum(layer.weight.shape[0] if config.granularity == "channel" else 1 for layer in layers.values())
        # What quantization adds in float32: activation ranges, and biases where there were none.
        ranges = 32 * (len(layers) + 2 * len(additions(reference))) if config.act_bits is not None else 0
        channels = sum(layer.weight.shape[0] for layer in layers.values() if layer.bias is None)
        budget = 8.0 * config.size_budget - rest - scales - ranges - 32 * channels * config.bias_correction
    else:
        budget = (config.mean_bits or stored_bits(bits, config.sign_bit, config.grid)) * total
    # They depend on the method, not on the budget.
    method = replace(config, act_bits=None, bits=0, mean_bits=None, size_budget=None, name="")
    found = memo.once(("sensitivities", repr(method)), lambda: sensitivities(reference, method, images, progress))
    return allocate(found, weights, budget + 1e-6, config), found
