"""Learned rounding: AdaRound, and block reconstruction with dropped activation quantization.

A unit (a layer or a block, see `units`) is optimized to reproduce the float network's output. The method learns whether
each weight is rounded up or down, and the clipping value of each activation.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptq_exp.base.console import log
from ptq_exp.base.errors import UserError
from ptq_exp.quantization.context import Context, shown
from ptq_exp.quantization.hooks import BATCH
from ptq_exp.quantization.layers import ActivationQuantizer, random_mask
from ptq_exp.quantization.learned_weights import SoftRounding
from ptq_exp.quantization.learning import (
    freeze_alphas,
    learn_alphas,
    learn_once,
    minimize,
    reconstruction_share,
    worth_learning,
)
from ptq_exp.quantization.modules import load_unique_state, unique_state
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.steps.step import Step
from ptq_exp.quantization.traced import Traced
from ptq_exp.quantization.units import Calls, NotByImage, Samples, Unit, layers_of, take, units

WARM_UP = 0.2  # share of the steps without the rounding penalty
BETA_START, BETA_END = 20.0, 2.0
REFRESHED = 5  # portions of the steps, before each of which the inputs of several calls are computed again


class Reconstruct(Step):
    """Learn the rounding, one unit after the other."""

    name = "reconstruct"
    reads = ("rounding", "reconstruction", "act_bits", "act_learned", "layers", "grid", "scales")

    def check(self, options: QuantConfig) -> None:
        if options.rounding != "nearest" and options.grid == "apot":
            raise UserError(f"quant.rounding={options.rounding} needs a uniform grid. Allowed with apot: nearest.")

    def run(self, context: Context) -> None:
        if context.options.rounding == "nearest" or not worth_learning(context):
            return
        learner, open_weights = _Learner(context), context.weights()
        everything = units(learner.network, context.options.rounding)
        for number, unit in enumerate(everything):
            module = unit.modules(learner.network)
            # A layer that two units share is learned with the first one.
            own = {n: open_weights.pop(n) for n in layers_of(context.network, module) if n in open_weights}
            title = f"Reconstructing {unit.name} ({number + 1}/{len(everything)})"
            part = reconstruction_share(context.options) / len(everything)
            span = (number * part, (number + 1) * part)
            learn_once(context, module, f"{number:03d}", number, partial(learner.learn, unit, module, own, title, span))


class _Learner:
    """Learns the units of a network one after the other."""

    def __init__(self, context: Context):
        self.context, self.network = context, Traced(context.network)
        self.samples: Samples | None = None  # of the last unit

    def learn(
        self, unit: Unit, module: nn.ModuleList, weights: dict[str, Tensor], title: str, span: tuple[float, float]
    ) -> None:
        """Learn one unit with a progress bar."""
        context, how = self.context, self.context.options.reconstruction
        with shown(context.progress, title, how.steps, span) as advance:
            if any(name in weights for name in layers_of(context.network, module)):
                self.samples = self._samples(unit, how.memory_gib * 2**30)
                if self.samples and self.samples.calls:
                    reconstruct_unit(context, unit, self.samples, module, weights, advance)

    def _samples(self, unit: Unit, memory: float) -> Samples | None:
        try:
            return Samples(unit, self.network, self.context.traced, self.context.images, memory, self.samples)
        except NotByImage:
            log.warning(
                "%s keeps its rounding to nearest: the first dimension of its input is not the image.", unit.name
            )
            return None


def reconstruct_unit(
    context: Context,
    unit: Unit,
    samples: Samples,
    module: nn.ModuleList,
    weights: dict[str, Tensor],
    advance: Callable[[], None],
) -> None:
    """Learn the rounding of a unit of the quantized network, in place. `module` has its parts, one per block.

    The unit's input is that of the quantized network. With QDrop, it is mixed element by element with the float
    network's input. The target is the float network's output (Li et al. 2021, "BRECQ"; Wei et al. 2022, "QDrop"). If
    the unit is called several times, all calls have equal weight. `weights` are the float weights of the layers to
    learn, by name. `advance` is called after every step. All randomness comes from torch's global generator.
    """
    how = context.options.reconstruction
    drop = how.drop if context.options.learned_act_bits is not None else 0.0  # share of unquantized activations
    every = layers_of(context.network, module)
    layers = {n: layer for n, layer in every.items() if n in weights}
    # Layers that are learned already, and operations that other parts of the network call, too, keep their ranges.
    settled: set[nn.Module | None] = {layer.activation for n, layer in every.items() if n not in weights}
    settled |= {m for name in unit.shared for m in context.network.get_submodule(name).modules()}
    quantizers = [m for m in module.modules() if isinstance(m, ActivationQuantizer) and m not in settled]
    calls = samples.calls
    parts = list(module) if unit.blocks else [module[0]] * len(calls)
    nearest = {key: value.clone() for key, value in unique_state(module).items()}
    powers = [target.square().mean().clamp(min=1e-12) for *_, target in calls]

    soft = SoftRounding(list(layers.values()), [weights[layer_name] for layer_name in layers])
    _set_drop(quantizers, drop)
    act_lr = how.act_lr if context.options.scales == "real" else 0.0
    logs = learn_alphas(quantizers, act_lr)
    groups: list[dict[str, Any]] = [{"params": [soft.v], "lr": how.lr}]
    if logs:
        groups.append({"params": logs, "lr": act_lr})
    beta = torch.tensor(BETA_START, device=calls[0][0].device)
    strength = torch.zeros((), device=calls[0][0].device)

    def loss() -> Tensor:
        chosen = torch.randint(samples.count, (how.batch_size,), device=calls[0][0].device)
        inputs = []
        for quantized_input, float_input, _ in calls:
            x = take(quantized_input, chosen)
            if drop:
                x = torch.lerp(x, take(float_input, chosen), random_mask(x, drop))
            inputs.append(x)
        for quantizer, log_alpha in zip(quantizers, logs, strict=False):
            quantizer.alpha = log_alpha.exp()
        undecided = soft(beta)
        errors = [
            F.mse_loss(part(x), take(target, chosen)) / power
            for part, x, (*_, target), power in zip(parts, inputs, calls, powers, strict=True)
        ]
        return sum(errors[1:], errors[0]) / len(errors) + strength * undecided

    # The inputs of a call may be computed from the output of another one, so they change while the weights are learned.
    loads = max(samples.portions, REFRESHED) if len(calls) > 1 else samples.portions

    def schedule(number: int) -> None:
        if number and number * loads // how.steps != (number - 1) * loads // how.steps:
            samples.load(number * samples.portions // how.steps)
        share = number / how.steps
        done = max(0.0, share - WARM_UP) / (1 - WARM_UP)
        beta.fill_(BETA_END + (BETA_START - BETA_END) * (1 - done))
        strength.fill_(how.penalty if share >= WARM_UP else 0.0)

    minimize(loss, groups, how.steps, schedule, advance)
    _set_drop(quantizers, 0.0)
    freeze_alphas(quantizers, logs)
    soft.finish()

    def error() -> float:
        if len(calls) > 1:
            samples.load(0)
        return _error(parts, calls)

    _keep_the_better(module, nearest, error)


def _keep_the_better(module: nn.Module, nearest: dict[str, Tensor], error: Callable[[], float]) -> None:
    """Restore the state before learning if its error is smaller: the last decisions to round up or down are forced,
    which can cost more than learning gained if the steps are few or the weights are."""
    learned, found = {key: value.clone() for key, value in unique_state(module).items()}, error()
    load_unique_state(module, nearest)
    if found < error():
        load_unique_state(module, learned)


@torch.no_grad()
def _error(parts: list[nn.Module], calls: Calls) -> float:
    """The squared error of the unit's calls on the samples, relative to the power of their targets."""
    total = 0.0
    for part, (inputs, _, targets) in zip(parts, calls, strict=True):
        rows = torch.arange(len(inputs), device=inputs.device).split(BATCH)
        errors = [(part(take(inputs, row)) - take(targets, row)).square().sum().item() for row in rows]
        total += sum(errors) / max(targets.square().sum().item(), 1e-12)
    return total


def _set_drop(quantizers: list[ActivationQuantizer], drop: float) -> None:
    for quantizer in quantizers:
        quantizer.drop = drop
