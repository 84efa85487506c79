"""Learned rounding: AdaRound, and block reconstruction with dropped activation quantization.

A unit (a layer or a residual block) is optimized to reproduce the float network's output. The method learns whether
each weight is rounded up or down, and the clipping value of each activation.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.networks.graph import blocks
from ptq_exp.quantization.context import Context, shown
from ptq_exp.quantization.hooks import BATCH, Inputs, StopForward, watching
from ptq_exp.quantization.layers import OPAQUE, ActivationQuantizer, QuantizedLayer, quantized_layers
from ptq_exp.quantization.learned_weights import SoftRounding
from ptq_exp.quantization.learning import (
    freeze_alphas,
    learn_alphas,
    learn_once,
    minimize,
    pixels_first,
    worth_learning,
)
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.steps.step import Step

WARM_UP = 0.2  # share of the steps without the rounding penalty
BETA_START, BETA_END = 20.0, 2.0


class Reconstruct(Step):
    """Learn the rounding, one unit after the other."""

    name = "reconstruct"
    reads = ("rounding", "reconstruction", "act_bits", "layers", "grid")

    def check(self, options: QuantConfig) -> None:
        if options.rounding != "nearest" and options.grid == "apot":
            raise UserError(f"quant.rounding={options.rounding} needs a uniform grid. Allowed with apot: nearest.")

    def run(self, context: Context) -> None:
        if context.options.rounding == "nearest" or not worth_learning(context):
            return
        names, open_weights = units(context.network, context.options.rounding), context.weights()
        for number, name in enumerate(names):
            unit = context.network.get_submodule(name)
            # A layer that two units share is learned with the first one.
            own = {n: open_weights.pop(n) for n in layers_of(context.network, unit) if n in open_weights}
            learn = partial(_learn, context, name, own, f"Reconstructing {name} ({number + 1}/{len(names)})")
            learn_once(context, unit, f"{number:03d}", number, learn)


def _learn(context: Context, name: str, weights: dict[str, Tensor], title: str) -> None:
    with shown(context.progress, title, context.options.reconstruction.steps) as advance:
        reconstruct_unit(context, name, weights, advance)


def units(network: nn.Module, rounding: str) -> list[str]:
    """The units to reconstruct, in network order: every layer, or every block and every layer outside a block."""
    layers = list(quantized_layers(network))
    if rounding == "adaround":
        return layers
    inside = blocks(network, OPAQUE)
    found: list[str] = []
    for layer in layers:
        unit = next((block for block in inside if layer.startswith(f"{block}.")), layer)
        if unit not in found:
            found.append(unit)
    return found


def layers_of(model: nn.Module, unit: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantized layers inside `unit`, by their names in `model`."""
    inside = set(unit.modules())
    return {name: layer for name, layer in quantized_layers(model).items() if layer in inside}


def reconstruct_unit(context: Context, name: str, weights: dict[str, Tensor], advance: Callable[[], None]) -> None:
    """Learn the rounding of the unit called `name` of the quantized network, in place.

    The unit's input is that of the quantized network. With QDrop, it is mixed element by element with the float
    network's input. The target is the float network's output (Li et al. 2021, "BRECQ"; Wei et al. 2022, "QDrop"). If
    the unit is called several times, all calls have equal weight. `weights` are the float weights of the layers to
    learn, by name. `advance` is called after every step. All randomness comes from torch's global generator.
    """
    network, images, how = context.network, context.images, context.options.reconstruction
    drop = how.drop if context.options.act_bits is not None else 0.0  # share of unquantized activations
    unit = network.get_submodule(name)
    every = layers_of(network, unit)
    layers = {n: layer for n, layer in every.items() if n in weights}
    settled = {layer.activation for n, layer in every.items() if n not in weights}
    quantizers = [m for m in unit.modules() if isinstance(m, ActivationQuantizer) and m not in settled]
    found = [given for given, _ in collect(network, name, images)]
    wanted = collect(context.reference, name, images)
    if not (layers and wanted):
        return
    calls = [(mine, *theirs) for mine, theirs in zip(found, wanted, strict=True)]
    powers = [target.square().mean().clamp(min=1e-12) for *_, target in calls]

    soft = SoftRounding(list(layers.values()), [weights[layer_name] for layer_name in layers])
    _set_drop(quantizers, drop)
    logs = learn_alphas(quantizers, how.act_lr)
    groups: list[dict[str, Any]] = [{"params": [soft.v], "lr": how.lr}]
    if logs:
        groups.append({"params": logs, "lr": how.act_lr})
    beta = torch.tensor(BETA_START, device=images.device)
    strength = torch.zeros((), device=images.device)

    def loss() -> Tensor:
        chosen = torch.randint(len(images), (how.batch_size,), device=images.device)
        inputs = []
        for quantized_input, float_input, _ in calls:
            x = take(quantized_input, chosen)
            if drop:
                x = torch.where(torch.rand_like(x) < drop, take(float_input, chosen), x)
            inputs.append(x)
        for quantizer, log_alpha in zip(quantizers, logs, strict=False):
            quantizer.alpha = log_alpha.exp()
        undecided = soft(beta)
        errors = [
            F.mse_loss(unit(x), take(target, chosen)) / power
            for x, (*_, target), power in zip(inputs, calls, powers, strict=True)
        ]
        return sum(errors[1:], errors[0]) / len(errors) + strength * undecided

    def schedule(number: int) -> None:
        share = number / how.steps
        done = max(0.0, share - WARM_UP) / (1 - WARM_UP)
        beta.fill_(BETA_END + (BETA_START - BETA_END) * (1 - done))
        strength.fill_(how.penalty if share >= WARM_UP else 0.0)

    minimize(loss, groups, how.steps, schedule, advance)
    _set_drop(quantizers, 0.0)
    freeze_alphas(quantizers, logs)
    soft.finish()


def collect(model: nn.Module, name: str, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Input and output of the module called `name` on all normalized `images`, one pair per call.

    They are vectors (N, C), or images (N, H, W, C), which `take` returns as (B, C, H, W).
    """
    seen: list[tuple[Tensor, Tensor]] = []
    calls = math.inf  # after so many calls the rest of the network need not run
    batches = []

    def keep(_: str, given: Inputs, output: Tensor) -> None:
        seen.append((given[0].detach(), output.detach()))
        if len(seen) == calls:
            raise StopForward

    with torch.no_grad(), watching(model, [name], outputs=keep) as forward:
        forward(images[:2])
        calls = len(seen)
        for batch in images.split(BATCH) if calls else ():
            seen.clear()
            forward(batch)
            batches.append(list(seen))
    parts = [[torch.cat(tensors) for tensors in zip(*call, strict=True)] for call in zip(*batches, strict=True)]
    return [(pixels_first(given), pixels_first(output)) for given, output in parts]


def take(stored: Tensor, chosen: Tensor) -> Tensor:
    """The rows `chosen` (B,) of a result of `collect`; images as (B, C, H, W), channels last."""
    rows = stored[chosen]
    return rows.permute(0, 3, 1, 2) if rows.dim() == 4 else rows


def _set_drop(quantizers: list[ActivationQuantizer], drop: float) -> None:
    for quantizer in quantizers:
        quantizer.drop = drop
