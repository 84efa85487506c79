"""Activation ranges from unlabelled calibration images.

An observer is a function `(observation, grid) -> alpha`; `@observer` makes it available as `quant.act_rule=<name>`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ptq_exp.quantization.grids import UniformGrid
from ptq_exp.quantization.hooks import BATCH, Inputs, watching

BINS = 4096
COUNTED = 2**24  # values at a time


@dataclass
class Observation:
    """Statistics of one tensor of the float network: its extremes and the histogram of its magnitudes."""

    low: float
    high: float
    histogram: Tensor  # (BINS,) counts of |x| from 0 to `limit`
    limit: float
    signed: Tensor | None = None  # (BINS,) counts of x from `low` to `high`, where a zero-point is wanted


Observer = Callable[[Observation, UniformGrid, float], float]
OBSERVERS: dict[str, Observer] = {}


def observer(name: str) -> Callable[[Observer], Observer]:
    """Make an observer available as `quant.act_rule=<name>`."""

    def register(rule: Observer) -> Observer:
        OBSERVERS[name] = rule
        return rule

    return register


@observer("max")
def maximum(seen: Observation, grid: UniformGrid, percentile: float) -> float:
    """The largest observed magnitude: nothing is clipped."""
    return seen.limit


@observer("percentile")
def percentile_of_magnitudes(seen: Observation, grid: UniformGrid, percentile: float) -> float:
    """The magnitude that `quant.act_percentile` percent of the values do not exceed (to within one bin)."""
    share = seen.histogram.cumsum(0) / seen.histogram.sum()
    position = int(torch.searchsorted(share, percentile / 100).clamp(max=BINS - 1))
    return (position + 1) / BINS * seen.limit


@observer("mse")
def histogram_mse(seen: Observation, grid: UniformGrid, percentile: float) -> float:
    """The clipping value, out of 200 candidates, with the smallest mean squared error on the histogram."""
    centres = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS * seen.limit
    candidates = torch.linspace(0.005, 1.0, 200, dtype=torch.float64) * seen.limit
    rounded = grid.fake_quantize(centres[None], (candidates / max(grid.high, 1))[:, None])
    errors = ((rounded - centres) ** 2 * seen.histogram.double()).sum(1)
    return float(candidates[errors.argmin()])


def with_zero_point(seen: Observation, bits: int, rule: str, percentile: float) -> tuple[float, int]:
    """The largest level and the lowest code of a grid of 2^bits levels with zero among them, for a tensor with negative
    values.

    The range is that of `rule`, for both ends: the extremes (max), so that `percentile` percent of the values lie
    within and as many below as above (percentile), or with the smallest mean squared error on the histogram (mse).
    """
    assert seen.signed is not None
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    centres = low + (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS * (high - low)
    if rule == "percentile":
        share = seen.signed.cumsum(0) / seen.signed.sum()
        beyond = (1 - percentile / 100) / 2
        ends = torch.searchsorted(share, torch.tensor([beyond, 1 - beyond], dtype=torch.float64)).clamp(max=BINS - 1)
        low, high = min(float(centres[ends[0]]), 0.0), max(float(centres[ends[1]]), 0.0)
    elif rule == "mse":
        shares = torch.linspace(0.01, 1.0, 100, dtype=torch.float64)
        found = low, high
        for pairs in ((shares * low, shares * high), (shares * low, None), (None, shares * high)):
            lows, highs = (
                torch.full_like(shares, end) if p is None else p for p, end in zip(pairs, found, strict=True)
            )
            scale, zero = _affine(lows, highs, bits)
            codes = torch.clamp(torch.round(centres / scale[:, None]), -zero[:, None], 2**bits - 1 - zero[:, None])
            errors = ((codes * scale[:, None] - centres) ** 2 * seen.signed).sum(1)
            best = int(errors.argmin())
            found = float(lows[best]), float(highs[best])
        low, high = found
    scale, zero = _affine(torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64), bits)
    return float(scale) * (2**bits - 1 - int(zero)), -int(zero)


def _affine(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero-point; at least one level lies above zero, since the largest one is what the quantizer stores."""
    below = 2**bits - 2  # the most levels below zero
    scale = torch.maximum((high - low) / (below + 1), -low / max(below, 1)).clamp(min=1e-12)
    return scale, torch.round(-low / scale).clamp(0, below)


@torch.inference_mode()
def observe(
    model: nn.Module,
    names: list[str],
    images: Tensor,
    advance: Callable[[], None] = lambda: None,
    both: bool = False,
) -> dict[str, dict[int, Observation]]:
    """Observe the inputs of the modules called `names` in the float `model` on normalized `images`.

    The result has one entry per tensor of floating point, by its position among the tensors. With `both`, it also has
    the histogram of both signs. The limit of a tensor with infinite values is infinite, and its histogram is empty.
    The first of two passes finds the extremes, the second fills the histograms.
    `advance` is called after every batch.
    """
    ends: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    histograms: dict[tuple[str, int], Tensor] = {}
    signed: dict[tuple[str, int], Tensor] = {}

    def find_ends(name: str, inputs: Inputs) -> None:
        for key, x in _numbered(name, inputs):
            low, high = ends.get(key, (x.amin(), x.amax()))
            ends[key] = torch.minimum(low, x.amin()), torch.maximum(high, x.amax())

    def count(name: str, inputs: Inputs) -> None:
        for key, x in _numbered(name, inputs):
            limit = max(float(ends[key][1]), -float(ends[key][0]), 1e-12)
            if not math.isfinite(limit):  # the masked scores of attention
                continue
            counts = _histogram(x.abs(), 0, limit)
            histograms[key] = histograms.get(key, 0) + counts
            if both and ends[key][0] < 0:
                low, high = float(ends[key][0]), max(float(ends[key][1]), 0.0)
                counts = _histogram(x, low, high)
                signed[key] = signed.get(key, 0) + counts

    for visit in (find_ends, count):
        with watching(model, names, inputs=visit) as forward:
            for batch in images.split(BATCH):
                forward(batch)
                advance()
    found: dict[str, dict[int, Observation]] = {name: {} for name in names}
    for key, (low, high) in ends.items():
        limit = max(float(high), -float(low), 1e-12)
        histogram = histograms.get(key, torch.zeros(BINS, dtype=torch.float64))
        name, position = key
        found[name][position] = Observation(float(low), float(high), histogram, limit, signed.get(key))
    return found


def _histogram(x: Tensor, low: float, high: float) -> Tensor:
    """The counts of `BINS` bins from `low` to `high`, in float64 on the CPU. No value lies outside."""
    count = counts_of_bins if x.is_cuda else _torch_histogram  # torch's own is not deterministic on CUDA
    parts = x.flatten().float().split(COUNTED)  # because it counts in float32, which ends at 2^24
    return torch.stack([count(part, low, high).double() for part in parts]).sum(0).cpu()


def _torch_histogram(x: Tensor, low: float, high: float) -> Tensor:
    return torch.histc(x, BINS, low, high)


def counts_of_bins(x: Tensor, low: float, high: float) -> Tensor:
    """What `torch.histc` counts of float32 values from `low` to `high`, as integers."""
    ends = torch.tensor([low, high], device=x.device)
    bins = ((x - ends[0]) * BINS / (ends[1] - ends[0])).long()
    return torch.bincount(bins.clamp_(max=BINS - 1), minlength=BINS)


def _numbered(name: str, inputs: Inputs) -> list[tuple[tuple[str, int], Tensor]]:
    """A module's inputs, keyed by the module's name and their position."""
    return [((name, position), x) for position, x in enumerate(inputs) if x.is_floating_point() and x.numel()]
