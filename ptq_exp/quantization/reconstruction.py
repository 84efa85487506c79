"""Learned rounding: AdaRound, block reconstruction with dropped activation quantization, network distillation.

A unit (a layer, a residual block or the network) is made to give the float network's output again by learning, for
every weight, whether it is rounded up or down, and for every activation its clipping value.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptq_exp.base.machine import tf32
from ptq_exp.quantization.augmentation import mix_pairs, random_crop_and_flip
from ptq_exp.quantization.layers import ActivationQuantizer, QuantizedLayer, quantized_layers
from ptq_exp.quantization.learned_weights import LearnedWeights, SoftRounding
from ptq_exp.quantization.options import ReconstructionConfig

BATCH = 256  # images at a time where only memory depends on it
WARM_UP = 0.2  # share of the steps without the rounding penalty
BETA_START, BETA_END = 20.0, 2.0
AHEAD = 50  # distillation: batches that the float network answers at once


@dataclass(frozen=True)
class Settings:
    """How a unit is reconstructed."""

    steps: int
    batch_size: int
    lr: float  # Adam's, of the rounding variables
    act_lr: float  # Adam's, of log alpha; 0 keeps the calibrated values
    penalty: float  # weight of the rounding penalty
    drop: float  # share of activations that pass unquantized (QDrop); 0 without


def collect(model: nn.Module, name: str, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Input and output of the module called `name` on normalized `images`, for all of them at once, one pair a call:
    vectors (N, C), or images (N, H, W, C), which `take` gives back as (B, C, H, W)."""
    seen: list[tuple[Tensor, Tensor]] = []
    calls = math.inf  # after which the rest of the network need not run

    def watch(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((given[0].detach(), output.detach()))
        if len(seen) == calls:
            raise StopForward

    handle = model.get_submodule(name).register_forward_hook(watch)
    batches = []
    try:
        with torch.no_grad():
            model(images[:2])
            calls = len(seen)
            for batch in images.split(BATCH) if calls else ():
                seen.clear()
                with contextlib.suppress(StopForward):
                    model(batch)
                batches.append(list(seen))
    finally:
        handle.remove()
    parts = [[torch.cat(tensors) for tensors in zip(*call, strict=True)] for call in zip(*batches, strict=True)]
    return [(_pixels_first(given), _pixels_first(output)) for given, output in parts]


def _pixels_first(x: Tensor) -> Tensor:
    """Images (N, C, H, W) as (N, H, W, C): a batch of them then has the layout that convolutions are quickest in."""
    return x.permute(0, 2, 3, 1).contiguous() if x.dim() == 4 else x


def take(stored: Tensor, chosen: Tensor) -> Tensor:
    """The rows `chosen` (B,) of what `collect` stored, images as (B, C, H, W), channels last."""
    rows = stored[chosen]
    return rows.permute(0, 3, 1, 2) if rows.dim() == 4 else rows


class StopForward(Exception):
    """Ends a forward pass early: what follows is not needed."""


def reconstruct_unit(
    model: nn.Module,
    reference: nn.Module,
    name: str,
    images: Tensor,
    weights: dict[str, Tensor],
    settings: Settings,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Learn the rounding of the unit called `name` of `model`, in place.

    The unit's input is that of the quantized network, with QDrop mixed element by element with the float network's;
    its target is the output of `reference`, the float network (Li et al. 2021, "BRECQ"; Wei et al. 2022, "QDrop").
    Where it is called several times, all calls count alike. `weights` are the float weights of the layers to learn, by
    name. All randomness comes from torch's global generator.
    """
    unit = model.get_submodule(name)
    every = layers_of(model, unit)
    layers = {n: layer for n, layer in every.items() if n in weights}
    settled = {layer.activation for n, layer in every.items() if n not in weights}
    quantizers = [m for m in unit.modules() if isinstance(m, ActivationQuantizer) and m not in settled]
    found = [given for given, _ in collect(model, name, images)]
    wanted = collect(reference, name, images)
    if not (layers and wanted):
        return
    calls = [(mine, *theirs) for mine, theirs in zip(found, wanted, strict=True)]
    powers = [target.square().mean().clamp(min=1e-12) for *_, target in calls]

    soft = SoftRounding(list(layers.values()), [weights[layer_name] for layer_name in layers])
    _set_drop(quantizers, settings.drop)
    logs = _learn_alphas(quantizers, settings.act_lr)
    groups: list[dict[str, Any]] = [{"params": [soft.v], "lr": settings.lr}]
    if logs:
        groups.append({"params": logs, "lr": settings.act_lr})
    beta = torch.tensor(BETA_START, device=images.device)
    strength = torch.zeros((), device=images.device)

    def loss() -> Tensor:
        chosen = torch.randint(len(images), (settings.batch_size,), device=images.device)
        inputs = []
        for quantized_input, float_input, _ in calls:
            x = take(quantized_input, chosen)
            if settings.drop:
                x = torch.where(torch.rand_like(x) < settings.drop, take(float_input, chosen), x)
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
        share = number / settings.steps
        done = max(0.0, share - WARM_UP) / (1 - WARM_UP)
        beta.fill_(BETA_END + (BETA_START - BETA_END) * (1 - done))
        strength.fill_(settings.penalty if share >= WARM_UP else 0.0)

    minimize(loss, groups, settings.steps, schedule, advance)
    _set_drop(quantizers, 0.0)
    _freeze_alphas(quantizers, logs)
    soft.finish()


def layers_of(model: nn.Module, unit: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantized layers inside `unit`, by the names that they have in `model`."""
    inside = set(unit.modules())
    return {name: layer for name, layer in quantized_layers(model).items() if layer in inside}


def _set_drop(quantizers: list[ActivationQuantizer], drop: float) -> None:
    for quantizer in quantizers:
        quantizer.drop = drop


def _learn_alphas(quantizers: list[ActivationQuantizer], lr: float) -> list[nn.Parameter]:
    """One parameter a quantizer, the logarithm of alpha: steps are relative, and alpha stays positive."""
    if lr == 0:
        return []
    logs = [nn.Parameter(q.alpha.detach().log()) for q in quantizers]
    for quantizer in quantizers:
        del quantizer.alpha
    return logs


def _freeze_alphas(quantizers: list[ActivationQuantizer], logs: list[nn.Parameter]) -> None:
    for quantizer, log_alpha in zip(quantizers, logs, strict=False):
        del quantizer.alpha
        quantizer.register_buffer("alpha", log_alpha.detach().exp())


def minimize(
    loss: Callable[[], Tensor],
    groups: list[dict[str, Any]],
    steps: int,
    schedule: Callable[[int], None],
    advance: Callable[[], None],
) -> None:
    """Adam on `groups` for `steps` steps; `schedule` is called with a step's number before it.

    On CUDA the step is captured once as a graph and replayed: its kernels are far too small to be launched one by
    one. `loss` and `schedule` must therefore keep what changes in tensors on the device.
    """
    parameters = [p for group in groups for p in group["params"]]
    cuda = parameters[0].is_cuda
    optimizer = torch.optim.Adam(groups, capturable=cuda, fused=cuda)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with tf32(True):  # what is learned this way is noisy anyhow, and convolutions take half the time
            loss().backward()
        optimizer.step()

    if not cuda:
        for number in range(steps):
            schedule(number)
            step()
            advance()
        return
    before = [p.detach().clone() for p in parameters]
    stream = torch.cuda.Stream()
    schedule(0)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    with torch.no_grad():  # the warm-up steps did not happen
        for p, value in zip(parameters, before, strict=True):
            p.copy_(value)
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()
    for number in range(steps):
        schedule(number)
        graph.replay()
        advance()


def distill(
    model: nn.Module,
    reference: nn.Module,
    images: Tensor,
    how: ReconstructionConfig,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Let the whole quantized network answer like the float one: weights, scales, biases and clipping values, in place.

    The loss is the Kullback-Leibler divergence of the logits (Hinton et al. 2015) on augmented calibration images;
    no label is looked at. The rate falls to zero along half a cosine; it is in levels for weights, and relative for
    scales and clipping values, which are learned as logarithms.
    """
    steps, batch_size, lr = how.distill_steps, how.distill_batch_size, how.distill_lr
    learned = LearnedWeights([m for m in model.modules() if isinstance(m, QuantizedLayer)])
    quantizers = [m for m in model.modules() if isinstance(m, ActivationQuantizer)]
    logs = _learn_alphas(quantizers, lr)
    biases = [layer.layer.bias for layer in learned.layers if layer.layer.bias is not None]
    for bias in biases:
        bias.requires_grad_(True)
    rate = torch.tensor(lr, device=images.device)
    pixels = _pixels_first(images[:1]).expand(batch_size, -1, -1, -1)
    batches = pixels.repeat(min(steps, AHEAD), 1, 1, 1, 1)
    with torch.no_grad():
        wanted = reference(images[:1])[None].repeat(len(batches), batch_size, 1)
    turn = torch.zeros(1, dtype=torch.long, device=images.device)

    @torch.no_grad()
    def draw_batches() -> None:
        chosen = torch.randint(len(images), (len(batches) * batch_size,), device=images.device)
        augmented = mix_pairs(random_crop_and_flip(images[chosen]), how.distill_mixup)
        batches.copy_(augmented.permute(0, 2, 3, 1).view_as(batches))
        answers = [reference(part).log_softmax(1) for part in augmented.split(BATCH)]
        wanted.copy_(torch.cat(answers).view_as(wanted))

    def loss() -> Tensor:
        for quantizer, log_alpha in zip(quantizers, logs, strict=False):
            quantizer.alpha = log_alpha.exp()
        learned()
        logits = model(batches.index_select(0, turn)[0].permute(0, 3, 1, 2))
        answer = wanted.index_select(0, turn)[0]
        return F.kl_div(logits.log_softmax(1), answer, log_target=True, reduction="batchmean")

    def schedule(number: int) -> None:
        if number % len(batches) == 0:
            draw_batches()
        turn.fill_(number % len(batches))
        rate.fill_(0.5 * lr * (1 + math.cos(math.pi * number / steps)))

    parameters = [*learned.parameters(), *biases, *logs]
    minimize(loss, [{"params": parameters, "lr": rate}], steps, schedule, advance)
    _freeze_alphas(quantizers, logs)
    for bias in biases:
        bias.requires_grad_(False)
    learned.finish()
