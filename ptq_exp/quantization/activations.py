"""Activation ranges from unlabelled calibration images.

An observer is a function `(observation, grid) -> alpha`; `@observer` makes it available as `quant.act_rule=<name>`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ptq_exp.quantization.grids import UniformGrid
from ptq_exp.quantization.hooks import BATCH, Inputs, watching

BINS = 4096


@dataclass
class Observation:
    """Statistics of one tensor of the float network: its extremes and the histogram of its magnitudes."""

    low: float
    high: float
    histogram: Tensor  # (BINS,) counts of |x| from 0 to `limit`
    limit: float


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


@torch.inference_mode()
def observe(
    model: nn.Module, names: list[str], images: Tensor, advance: Callable[[], None] = lambda: None
) -> dict[str, list[Observation]]:
    """Observe the inputs of the modules called `names` in the float `model` on normalized `images`.

    The result has one entry per input. The first of two passes finds the extremes, the second fills the histograms.
    `advance` is called after every batch.
    """
    ends: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    histograms: dict[tuple[str, int], Tensor] = {}

    def find_ends(name: str, inputs: Inputs) -> None:
        for key, x in _numbered(name, inputs):
            low, high = ends.get(key, (x.amin(), x.amax()))
            ends[key] = torch.minimum(low, x.amin()), torch.maximum(high, x.amax())

    def count(name: str, inputs: Inputs) -> None:
        for key, x in _numbered(name, inputs):
            limit = max(float(ends[key][1]), -float(ends[key][0]), 1e-12)
            # On the CPU: CUDA has no deterministic histogram.
            counts = torch.histc(x.abs().flatten().float().cpu(), BINS, 0, limit)
            histograms[key] = histograms.get(key, torch.zeros(BINS, dtype=torch.float64)) + counts

    for visit in (find_ends, count):
        with watching(model, names, inputs=visit) as forward:
            for batch in images.split(BATCH):
                forward(batch)
                advance()
    found: dict[str, list[Observation]] = {name: [] for name in names}
    for (name, position), (low, high) in sorted(ends.items(), key=lambda item: item[0][1]):
        limit = max(float(high), -float(low), 1e-12)
        found[name].append(Observation(float(low), float(high), histograms[name, position], limit))
    return found


def _numbered(name: str, inputs: Inputs) -> list[tuple[tuple[str, int], Tensor]]:
    """A module's inputs, keyed by the module's name and their position."""
    return [((name, position), x) for position, x in enumerate(inputs)]
