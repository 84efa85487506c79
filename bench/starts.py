"""Warm starts and early stopping: `python -m bench.starts`, on the networks and images of `bench.steps`.

A warm start rounds the weights that `quant=best` learned at the neighbouring bit width, instead of the float weights.
Early stopping tries more and more steps on each block, and stops when the error of the block falls by less than
`GAIN`; the row beside it takes the mean number of steps on every block. The divergence from the float network is
measured on training images that were not used for calibration. Lines are appended to bench/results/starts.jsonl. Needs
neither Hydra nor MLflow.
"""

import copy
import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from bench.harness import selected
from bench.steps import NETWORKS, PRESET, WIDTHS, Case, case_of, keep, measured, options_of, parser_of
from bench.workers import read_lines
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.quantization.context import Calibration, Context
from ptq_exp.quantization.distillation import distill
from ptq_exp.quantization.layers import quantized_layers
from ptq_exp.quantization.modules import load_unique_state, unique_state
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.quantize import Quantized, quantize
from ptq_exp.quantization.steps import reconstruct
from ptq_exp.runs.device import pick_device

RESULTS = PROJECT_ROOT / "bench" / "results" / "starts.jsonl"
NEIGHBOURS: dict[str, tuple[int, int | None]] = {"W2": (3, None), "W3": (4, None), "W4A4": (5, 5), "W2A2": (3, 3)}
WARM_STEPS = [(0, 1000), (250, 500), PRESET]
TRIES = (125, 250, 500, 1000, 2000)  # steps per block, of which early stopping chooses
GAIN = 0.05
LAST = "the same mean"  # the way that is measured last


def main() -> None:
    """Measure the missing results."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="*", default=["ResNet-20"], help="networks or widths, such as ResNet-20 W2")
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="share of the steps; the learning rate of rounding grows as they shrink",
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    done = {(line["network"], line["widths"]) for line in read_lines(arguments.results) if line["way"] == LAST}
    for network in selected(NETWORKS, arguments.only):
        missing = [widths for widths in selected(WIDTHS, arguments.only) if (network, widths) not in done]
        if missing:
            case = case_of(network, arguments, device)
            for widths in missing:
                lines = (warm_starts(case, widths, arguments.share), early_stopping(case, widths, arguments.share))
                for line in itertools.chain(*lines):
                    keep({"network": network} | line, device, arguments.results)


def scaled(steps: Iterable[int], share: float) -> Any:
    """A share of some numbers of steps."""
    return tuple(round(share * number) for number in steps)


def warm_starts(case: Case, widths: str, share: float) -> Iterator[dict[str, Any]]:
    """Quantize from the float weights and from those of the neighbouring width. Its time does not count."""
    bits, act_bits = NEIGHBOURS[widths]
    options = options_of(scaled(PRESET, share), widths, share)[0]
    options = dataclasses.replace(options, act_bits=act_bits)
    neighbour = quantize(case.network.model, options, bits, case.calibration)
    for steps in (scaled(pair, share) for pair in WARM_STEPS):
        yield {"way": "from float"} | measured(case, steps, widths, share)
        found = case.measured(partial(warmed, case, neighbour, options_of(steps, widths, share)))
        yield {"way": "warm start", "steps": list(steps), "widths": widths} | found


def warmed(case: Case, neighbour: Quantized, method: tuple[QuantConfig, int]) -> nn.Module:
    """Quantize the weights of `neighbour`, and distill the float network into them."""
    start = copy.deepcopy(neighbour.reference)
    for name, layer in quantized_layers(neighbour.network).items():
        own = start.get_submodule(name)
        assert isinstance(own, nn.Conv2d | nn.Linear)
        own.weight.data.copy_(layer.weight)
        if own.bias is not None and layer.bias is not None:
            own.bias.data.copy_(layer.bias)
    options, bits = method
    how = options.reconstruction
    blocks_alone = dataclasses.replace(options, reconstruction=dataclasses.replace(how, distill_steps=0))
    network = quantize(start, blocks_alone, bits, Calibration(case.calibration.images)).network
    torch.manual_seed(0)
    distill(network, neighbour.reference, case.calibration.images, how)
    return network


def early_stopping(case: Case, widths: str, share: float) -> Iterator[dict[str, Any]]:
    """Quantize with as many steps on each block as it gains from, and with their mean on every block."""
    whole = scaled(PRESET, share)
    options, bits = options_of(whole, widths, share)
    taken: list[int] = []
    errors: list[list[float]] = []
    unit = stopping(reconstruct.reconstruct_unit, scaled(TRIES, share), taken, errors)
    with mock.patch.object(reconstruct, "reconstruct_unit", unit):
        found = case.measured(lambda: quantize(case.network.model, options, bits, case.calibration).network)
    mean = round(statistics.mean(taken))
    line = {"way": "early stopping", "steps": [mean, whole[1]], "widths": widths}
    yield line | found | {"taken": taken, "errors": errors}
    yield {"way": LAST} | measured(case, (mean, whole[1]), widths, share)


def stopping(
    learn: Callable[..., None], tries: tuple[int, ...], taken: list[int], errors: list[list[float]]
) -> Callable[..., None]:
    """`reconstruct_unit` with the steps of `tries`. `taken` gets the last ones, `errors` the error after each try."""

    def learn_until(context: Context, unit: Any, samples: Any, module: nn.ModuleList, *rest: Any) -> None:
        options, own = context.options, []
        before = {key: value.clone() for key, value in unique_state(module).items()}
        parts = list(module) if unit.blocks else [module[0]] * len(samples.calls)
        for steps in tries:
            load_unique_state(module, before)
            how = dataclasses.replace(options.reconstruction, steps=steps)
            context.options = dataclasses.replace(options, reconstruction=how)
            learn(context, unit, samples, module, *rest)
            own.append(reconstruct._error(parts, samples.calls))
            if len(own) > 1 and own[-1] > (1 - GAIN) * own[-2]:
                break
        context.options = options
        taken.append(steps)
        errors.append(own)

    return learn_until


if __name__ == "__main__":
    main()
