"""The inputs of a network's batch norms, compared with the statistics stored in training."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ptq_exp.quantization.hooks import Inputs, StopForward, watching

FEWEST_BATCHES = 100  # training batches that running statistics need to describe the inputs

Divergences = dict[str, float]  # batch norm -> nats per channel, in the order of execution
Moments = tuple[int, Tensor, Tensor]  # of one batch in one call: count of values, mean (C,), variance (C,)


def trained_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms of all kinds whose running statistics describe the images of the training."""
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and _trained(m)}


def _trained(norm: _BatchNorm) -> bool:
    """Whether the running statistics are meaningful. A file may lack the number of batches, which is then 0."""
    mean, variance, seen = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if mean is None or variance is None or (seen is not None and 0 < int(seen) < FEWEST_BATCHES):
        return False
    return bool((mean != 0).any() or (variance != 1).any())


@torch.no_grad()
def count_calls(model: nn.Module, norms: Iterable[str], batch: Tensor) -> Counter[str]:
    """How often each norm is called, in the order of their first calls. Norms that are not called are left out."""
    calls: Counter[str] = Counter()

    def count(name: str, inputs: Inputs) -> None:
        if inputs:  # one passed by keyword is not seen by the hook
            calls[name] += 1

    with _in_eval_mode(model), watching(model, norms, inputs=count) as forward:
        forward(batch)
    return calls


@torch.no_grad()
def divergences(
    model: nn.Module, norms: dict[str, _BatchNorm], repeated: list[str], batches: Iterable[Tensor], first_only: bool
) -> Divergences:
    """The KL divergence between Gaussians of the observed and of the stored statistics, (observed || stored).

    The norms in `repeated` are called several times per pass. As in training, each call normalizes by its own batch,
    or the later layers would not get what they got then. `first_only` stops each pass at the first norm.
    """
    moments: dict[tuple[str, int], list[Moments]] = defaultdict(list)
    calls: Counter[str] = Counter()  # of each norm in the current pass

    def add(name: str, inputs: Inputs) -> None:
        moments[name, calls[name]].append(_moments(inputs[0]))
        calls[name] += 1
        if first_only:
            raise StopForward

    with contextlib.ExitStack() as stack:
        stack.enter_context(_in_eval_mode(model))
        for name in repeated:
            stack.callback(norms[name].register_forward_hook(_by_own_batch).remove)
        forward = stack.enter_context(watching(model, norms, inputs=add))
        for batch in batches:
            calls.clear()
            forward(batch)
    # Running statistics are averages over calls, so the variance between the calls of one norm does not count.
    observed: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for (name, _), parts in moments.items():
        observed[name].append(_combined(parts))
    return {
        name: _divergence(norms[name], *(torch.stack(parts).mean(0) for parts in zip(*pairs, strict=True)))
        for name, pairs in observed.items()
    }


@contextlib.contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _by_own_batch(norm: nn.Module, inputs: Inputs, _: Tensor) -> Tensor:
    assert isinstance(norm, _BatchNorm)
    return F.batch_norm(inputs[0], None, None, norm.weight, norm.bias, training=True, eps=norm.eps)


def _moments(values: Tensor) -> Moments:
    """Of the channels of (N, C, ...)."""
    dims = [dim for dim in range(values.dim()) if dim != 1]
    values = values.float()
    # Two averages take a third of the time of torch.var_mean on a CPU.
    mean, square = values.mean(dims).double(), values.square().mean(dims).double()
    return values.numel() // values.shape[1], mean, (square - mean.square()).clamp(min=0)


def _combined(parts: list[Moments]) -> tuple[Tensor, Tensor]:
    """Mean and variance of all batches together."""
    counts = torch.tensor([count for count, _, _ in parts], dtype=torch.float64, device=parts[0][1].device)
    weights = (counts / counts.sum())[:, None]
    means = torch.stack([mean for _, mean, _ in parts])
    variances = torch.stack([variance for _, _, variance in parts])
    mean = (weights * means).sum(0)
    return mean, (weights * (variances + (means - mean).square())).sum(0)


def _divergence(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> float:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    stored = norm.running_var.double()
    floor = norm.eps + 1e-3 * stored.mean()  # a channel that is never active has no variance to compare
    ratio = (variance + floor) / (stored + floor)
    shift = (mean - norm.running_mean.double()).square() / (stored + floor)
    return 0.5 * float((ratio + shift - 1 - ratio.log()).mean())
