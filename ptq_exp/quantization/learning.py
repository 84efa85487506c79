"""Common parts of learned methods: when to learn, a store of results, clipping values, the optimization loop."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ptq_exp.base.machine import tf32
from ptq_exp.base.tensors import load_checked, save_checked
from ptq_exp.quantization.context import Context
from ptq_exp.quantization.layers import ActivationQuantizer
from ptq_exp.quantization.modules import load_unique_state, unique_state
from ptq_exp.quantization.options import QuantConfig

RECONSTRUCTION_VERSION = 9  # raised when learned rounding changes, so that older units in the store are not used


def worth_learning(context: Context) -> bool:
    """Whether any weights have at most `reconstruction.up_to_bits` bits, or the activations at most
    `reconstruction.act_up_to_bits`. Otherwise the loss of rounding to nearest is negligible."""
    return learns(context.options, min(context.plan.values()))


def learns(options: QuantConfig, bits: float) -> bool:
    """The same for weights whose smallest width is `bits`."""
    act_bits, how = options.learned_act_bits, options.reconstruction
    return bits <= how.up_to_bits or (act_bits is not None and act_bits <= how.act_up_to_bits)


def reconstruction_share(options: QuantConfig) -> float:
    """The share of all learning that the reconstruction takes; distillation takes the rest.

    One step on each unit takes about as long as one step on the whole network with the same number of images.
    """
    how = options.reconstruction
    units = how.steps * how.batch_size if options.rounding != "nearest" else 0
    whole = how.distill_steps * how.distill_batch_size
    return units / (units + whole) if units else 0.0


def learn_once(context: Context, unit: nn.Module, name: str, number: int, learn: Callable[[], None]) -> None:
    """Let `learn` change `unit` in place, or load the result stored under `name` in the context's store.

    A result for another plan is not used. `number` gives the unit its own random seed.
    """
    torch.manual_seed(context.calibration.seed * 1000 + number)
    file = context.store / f"{name}.safetensors" if context.store else None
    if file and _restore(unit, file, context.plan):
        return
    learn()
    if file:
        _keep(unit, file, context.plan)


def _keep(unit: nn.Module, file: Path, plan: dict[str, float]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")  # another job may write the same unit
    save_checked({key: x.cpu().contiguous() for key, x in unique_state(unit).items()}, partial, {"plan": plan})
    partial.replace(file)


def _restore(unit: nn.Module, file: Path, plan: dict[str, float]) -> bool:
    """Load a stored unit. Returns False if there is none, its bit widths differ, or the file is damaged."""
    try:
        tensors, about = load_checked(file)
        if about["plan"] != plan:  # sensitivities are measured, so another machine may get another plan
            return False
        load_unique_state(unit, tensors)
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError):
        return False
    return True


def learn_alphas(quantizers: list[ActivationQuantizer], lr: float) -> list[nn.Parameter]:
    """One parameter per quantizer, the logarithm of alpha, so that steps are relative and alpha stays positive."""
    if lr == 0:
        return []
    logs = [nn.Parameter(q.alpha.detach().log()) for q in quantizers]
    for quantizer in quantizers:
        del quantizer.alpha
    return logs


def freeze_alphas(quantizers: list[ActivationQuantizer], logs: list[nn.Parameter]) -> None:
    """Store the current values of the parameters of `learn_alphas` in the quantizers."""
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
    """Run Adam on `groups` for `steps` steps. `schedule` is called before each step with its number.

    On CUDA the step is captured once as a graph and replayed, because its kernels are too small to be launched one by
    one. `loss` and `schedule` must therefore keep changing values in tensors on the device.
    """
    parameters = [p for group in groups for p in group["params"]]
    cuda = parameters[0].is_cuda
    optimizer = torch.optim.Adam(groups, capturable=cuda, fused=cuda)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with tf32(True):  # learning is noisy anyway, and convolutions take half the time
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
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a thread may report the previous job
        step()
    with torch.no_grad():  # undo the warm-up steps
        for p, value in zip(parameters, before, strict=True):
            p.copy_(value)
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()
    for number in range(steps):
        schedule(number)
        graph.replay()
        advance()
