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

from ptq_exp.quantization.grids import UniformGrid
from ptq_exp.quantization.layers import ActivationQuantizer, QuantizedLayer, round_through

BATCH = 256  # images at a time where only memory depends on it
ZETA, GAMMA = 1.1, -0.1  # the rectified sigmoid is stretched to (-0.1, 1.1), so that it reaches 0 and 1
WARM_UP = 0.2  # share of the steps without the rounding penalty
BETA_START, BETA_END = 20.0, 2.0
SLOWER = 0.1  # distillation: scales, biases and clipping values against the weights, which count in levels


@dataclass(frozen=True)
class Settings:
    """How a unit is reconstructed."""

    steps: int
    batch_size: int
    lr: float  # Adam's, of the rounding variables
    act_lr: float  # Adam's, of log alpha; 0 keeps the calibrated values
    penalty: float  # weight of the rounding penalty
    drop: float  # share of activations that pass unquantized (QDrop); 0 without


class SoftRounding(nn.Module):
    """Weights between their two neighbouring levels: floor(w / scale) + h(v), h the rectified sigmoid.

    Nagel et al. 2020, "Up or Down? Adaptive Rounding", equations 22 to 24.
    """

    def __init__(self, layer: QuantizedLayer, weight: Tensor):
        super().__init__()
        assert isinstance(layer.grid, UniformGrid)
        self.grid, self.scale, self.zero_point = layer.grid, layer.scale, layer.zero_point
        position = weight / self.scale
        self.floor = torch.floor(position)
        rest = (position - self.floor).clamp(1e-4, 1 - 1e-4)
        self.v = nn.Parameter(-torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1))

    def share(self) -> Tensor:
        """h(v): 0 where a weight is rounded down, 1 where up."""
        return torch.clamp(torch.sigmoid(self.v) * (ZETA - GAMMA) + GAMMA, 0, 1)

    def forward(self) -> Tensor:
        codes = torch.clamp(self.floor + self.share() + self.zero_point, self.grid.low, self.grid.high)
        return (codes - self.zero_point) * self.scale

    def penalty(self, beta: Tensor) -> Tensor:
        """How undecided the weights are: sum of 1 - |2h - 1|^beta."""
        return (1 - (2 * self.share() - 1).abs().pow(beta)).sum()

    def codes(self) -> Tensor:
        """The decided codes."""
        return torch.clamp(self.floor + (self.share() >= 0.5) + self.zero_point, self.grid.low, self.grid.high)


class LearnedWeight(nn.Module):
    """Weights, in units of their scale, and the scales, free to move under the rounding (Esser et al. 2020)."""

    def __init__(self, layer: QuantizedLayer, weight: Tensor):
        super().__init__()
        self.grid, self.zero_point = layer.grid, layer.zero_point
        self.position = nn.Parameter(weight / layer.scale)
        self.log_scale = nn.Parameter(layer.scale.log())

    def forward(self) -> Tensor:
        codes = torch.clamp(round_through(self.position) + self.zero_point, self.grid.low, self.grid.high)
        return (codes - self.zero_point) * self.log_scale.exp()


def collect(model: nn.Module, name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of the module called `name` on normalized `images`, for all of them at once."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def watch(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(given[0].detach())
        outputs.append(output.detach())
        raise _Enough

    handle = model.get_submodule(name).register_forward_hook(watch)
    try:
        with torch.no_grad():
            for batch in images.split(BATCH):
                with contextlib.suppress(_Enough):
                    model(batch)
    finally:
        handle.remove()
    return torch.cat(inputs), torch.cat(outputs)


class _Enough(Exception):
    """The rest of the network need not run."""


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
    `weights` are the float weights by layer name. All randomness comes from torch's global generator.
    """
    unit = model.get_submodule(name)
    layers = {n: m for n, m in _with_prefix(unit, name) if isinstance(m, QuantizedLayer)}
    quantizers = [m for m in unit.modules() if isinstance(m, ActivationQuantizer)]
    quantized_input, _ = collect(model, name, images)
    float_input, target = collect(reference, name, images)
    power = target.square().mean().clamp(min=1e-12)

    soft = [SoftRounding(layer, weights[layer_name]) for layer_name, layer in layers.items()]
    for layer, learned in zip(layers.values(), soft, strict=True):
        layer.soft = learned
    _set_drop(quantizers, settings.drop)
    logs = _learn_alphas(quantizers, settings.act_lr)
    groups: list[dict[str, Any]] = [{"params": [s.v for s in soft], "lr": settings.lr}]
    if logs:
        groups.append({"params": logs, "lr": settings.act_lr})
    beta = torch.tensor(BETA_START, device=images.device)
    strength = torch.zeros((), device=images.device)

    def loss() -> Tensor:
        chosen = torch.randint(len(images), (settings.batch_size,), device=images.device)
        x = quantized_input[chosen]
        if settings.drop:
            x = torch.where(torch.rand_like(x) < settings.drop, float_input[chosen], x)
        for quantizer, log_alpha in zip(quantizers, logs, strict=False):
            quantizer.alpha = log_alpha.exp()
        error = (unit(x) - target[chosen]).square().mean() / power
        return error + strength * sum(s.penalty(beta) for s in soft)

    def schedule(share: float) -> None:
        done = max(0.0, share - WARM_UP) / (1 - WARM_UP)
        beta.fill_(BETA_END + (BETA_START - BETA_END) * (1 - done))
        strength.fill_(settings.penalty if share >= WARM_UP else 0.0)

    minimize(loss, groups, settings.steps, schedule, advance)
    _set_drop(quantizers, 0.0)
    _freeze_alphas(quantizers, logs)
    for layer, learned in zip(layers.values(), soft, strict=True):
        layer.soft = None
        layer.set_codes(learned.codes().detach())


def _with_prefix(unit: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    return [(f"{name}.{n}" if n else name, m) for n, m in unit.named_modules()]


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
    schedule: Callable[[float], None],
    advance: Callable[[], None],
) -> None:
    """Adam on `groups` for `steps` steps; `schedule` is called with the share of the steps done before each.

    On CUDA the step is captured once as a graph and replayed: its kernels are far too small to be launched one by
    one. `loss` and `schedule` must therefore keep what changes in tensors on the device.
    """
    parameters = [p for group in groups for p in group["params"]]
    cuda = parameters[0].is_cuda
    optimizer = torch.optim.Adam(groups, capturable=cuda)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    if not cuda:
        for number in range(steps):
            schedule(number / steps)
            step()
            advance()
        return
    before = [p.detach().clone() for p in parameters]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    schedule(0.0)
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        loss().backward()
        optimizer.step()
    with torch.no_grad():  # the warm-up steps did not happen
        for p, value in zip(parameters, before, strict=True):
            p.copy_(value)
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()
    for number in range(steps):
        schedule(number / steps)
        graph.replay()
        advance()


def distill(
    model: nn.Module,
    reference: nn.Module,
    images: Tensor,
    steps: int,
    batch_size: int,
    lr: float,
    augment: Callable[[Tensor], Tensor],
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Let the whole quantized network answer like the float one: weights, scales, biases and clipping values, in place.

    The loss is the Kullback-Leibler divergence of the logits (Hinton et al. 2015) on augmented calibration images;
    no label is looked at. The rate falls to zero along half a cosine.
    """
    layers = [m for m in model.modules() if isinstance(m, QuantizedLayer)]
    quantizers = [m for m in model.modules() if isinstance(m, ActivationQuantizer)]
    soft = [LearnedWeight(layer, layer.layer.weight.detach()) for layer in layers]
    for layer, learned in zip(layers, soft, strict=True):
        layer.soft = learned
    logs = _learn_alphas(quantizers, lr)
    biases = [layer.layer.bias for layer in layers if layer.layer.bias is not None]
    for bias in biases:
        bias.requires_grad_(True)
    groups: list[dict[str, Any]] = [
        {"params": [learned.position for learned in soft], "base": lr},
        {"params": [learned.log_scale for learned in soft] + biases + logs, "base": lr * SLOWER},
    ]
    for group in groups:
        group["lr"] = torch.tensor(group["base"], device=images.device)

    def loss() -> Tensor:
        x = augment(images[torch.randint(len(images), (batch_size,), device=images.device)])
        for quantizer, log_alpha in zip(quantizers, logs, strict=False):
            quantizer.alpha = log_alpha.exp()
        with torch.no_grad():
            wanted = reference(x)
        return F.kl_div(model(x).log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean")

    def schedule(share: float) -> None:
        factor = 0.5 * (1 + math.cos(math.pi * share))
        for group in groups:
            group["lr"].fill_(group["base"] * factor)

    minimize(loss, groups, steps, schedule, advance)
    _freeze_alphas(quantizers, logs)
    for bias in biases:
        bias.requires_grad_(False)
    for layer, learned in zip(layers, soft, strict=True):
        layer.soft = None
        layer.scale.copy_(learned.log_scale.detach().exp())
        codes = torch.round(learned.position.detach()) + layer.zero_point
        layer.set_codes(codes.clamp(layer.grid.low, layer.grid.high))
