"""Static calibration of activation ranges on a label-free draw of images.

An observer is a function `(observation, grid) -> alpha`; `@observer` makes it available as `quant.act_rule=<name>`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.quantization.grids import UniformGrid, activation_grid
from ptq_exp.quantization.layers import ActivationQuantizer, QuantizedAddition, QuantizedLayer
from ptq_exp.quantization.memo import Memo
from ptq_exp.quantization.modules import replace_module
from ptq_exp.quantization.progress import Progress, shown

BINS = 4096
BATCH = 256


@dataclass
class Observation:
    """What one tensor of the float network looked like: its ends and the histogram of its magnitudes."""

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
    """The largest magnitude that occurred: nothing is clipped."""
    return seen.limit


@observer("percentile")
def percentile_of_magnitudes(seen: Observation, grid: UniformGrid, percentile: float) -> float:
    """The magnitude that `quant.act_percentile` percent of the values do not exceed (to a bin's width)."""
    share = seen.histogram.cumsum(0) / seen.histogram.sum()
    position = int(torch.searchsorted(share, percentile / 100).clamp(max=BINS - 1))
    return (position + 1) / BINS * seen.limit


@observer("mse")
def histogram_mse(seen: Observation, grid: UniformGrid, percentile: float) -> float:
    """The clipping value with the smallest mean squared error on the histogram, of 200 candidates."""
    centres = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS * seen.limit
    candidates = torch.linspace(0.005, 1.0, 200, dtype=torch.float64) * seen.limit
    rounded = grid.fake_quantize(centres[None], (candidates / max(grid.high, 1))[:, None])
    errors = ((rounded - centres) ** 2 * seen.histogram.double()).sum(1)
    return float(candidates[errors.argmin()])


@torch.inference_mode()
def observe(
    model: nn.Module, names: list[str], images: Tensor, progress: Progress | None = None
) -> dict[str, list[Observation]]:
    """The inputs of the modules called `names` in the float `model` on normalized `images`, one entry an input.

    Two passes: the first finds the ends, the second fills the histograms.
    """
    ends: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    histograms: dict[tuple[str, int], Tensor] = {}

    def find_ends(key: tuple[str, int], x: Tensor) -> None:
        low, high = ends.get(key, (x.amin(), x.amax()))
        ends[key] = torch.minimum(low, x.amin()), torch.maximum(high, x.amax())

    def count(key: tuple[str, int], x: Tensor) -> None:
        limit = max(float(ends[key][1]), -float(ends[key][0]), 1e-12)
        # On the CPU: CUDA has no deterministic histogram.
        counts = torch.histc(x.abs().flatten().float().cpu(), BINS, 0, limit)
        histograms[key] = histograms.get(key, torch.zeros(BINS, dtype=torch.float64)) + counts

    with shown(progress, "Calibrating activations", 2 * math.ceil(len(images) / BATCH)) as advance:
        for visit in (find_ends, count):
            _run_with_inputs(model, names, images, visit, advance)
    found: dict[str, list[Observation]] = {name: [] for name in names}
    for (name, position), (low, high) in sorted(ends.items(), key=lambda item: item[0][1]):
        limit = max(float(high), -float(low), 1e-12)
        found[name].append(Observation(float(low), float(high), histograms[name, position], limit))
    return found


def _run_with_inputs(
    model: nn.Module,
    names: list[str],
    images: Tensor,
    visit: Callable[[tuple[str, int], Tensor], None],
    advance: Callable[[], None],
) -> None:
    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def watch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for position, x in enumerate(inputs):
                visit((name, position), x)

        return watch

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        for batch in images.split(BATCH):
            model(batch)
            advance()
    finally:
        for handle in handles:
            handle.remove()


def additions(model: nn.Module) -> list[str]:
    """The residual additions: modules whose class says `quantize_inputs = True`."""
    return [name for name, module in model.named_modules() if getattr(module, "quantize_inputs", False)]


def quantize_activations(
    model: nn.Module,
    reference: nn.Module,
    layers: dict[str, QuantizedLayer],
    bits: dict[str, int],
    images: Tensor,
    memo: Memo,
    *,
    rule: str,
    percentile: float,
    alpha: float | None,
    spared: str | None,
    residual_bits: int | None,
    progress: Progress | None = None,
) -> dict[str, Observation]:
    """Put a quantizer before every layer of `layers` (and residual addition), in place; what these layers' inputs
    looked like.

    `bits` names the layers that get one and their width; `spared` is the layer that sees the image, if its input
    is to stay float. `residual_bits` is the width of the operands of residual additions, or None. Ranges come from
    `reference`, the float network, on `images`; a number for `alpha` overrides them. Tensors with negative values get
    a signed grid.
    """
    names = [name for name in layers if name in bits and name != spared]
    joints = additions(reference) if residual_bits is not None else []
    wanted = names + joints
    every = memo.once(("observations", id(reference), *wanted), lambda: observe(reference, wanted, images, progress))
    seen = {name: found for name, found in every.items() if found}  # a module may be there and never run

    def make(observation: Observation, width: int) -> ActivationQuantizer:
        signed = observation.low < 0
        if signed and width == 1:
            raise UserError(
                "quant.act_bits=1 leaves tensors with negative values (the image, residual sums) no level above zero. "
                "Use 2 bits, or leave act_input_image and act_residual false."
            )
        chosen = (
            alpha if alpha is not None else OBSERVERS[rule](observation, activation_grid(width, signed), percentile)
        )
        return ActivationQuantizer(width, chosen, signed).to(images.device)

    for name in seen:
        if name in layers:
            layers[name].activation = make(seen[name][0], bits[name])
        else:
            first_operand, second_operand = (make(observation, residual_bits or 0) for observation in seen[name])
            replace_module(model, name, QuantizedAddition(model.get_submodule(name), first_operand, second_operand))
    return {name: seen[name][0] for name in seen if name in layers}
