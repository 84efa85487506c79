"""Time against accuracy over the steps of learning: `python -m bench.steps`.

Networks are quantized with `quant=best` and other numbers of steps: the published ResNet-20, with 4,096 of the lossless
training images for calibration, and a ResNet-56 (trained here with `trainer=fast`) and the mobilenet_v2 of
`bench.foreign`, with 4,096 JPEG training images. The divergence from the float network is measured on 10,000 other JPEG
training images, so no test image takes part in the choice of a preset. Lines are appended to bench/results/steps.jsonl;
existing results are not measured again. Then the figures of docs/performance.md are drawn. Needs neither Hydra nor
MLflow.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import foreign
from bench.harness import FAST, on_images, preset, selected
from bench.workers import add_line, read_lines
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.config import Config
from ptq_exp.data import load_dataset
from ptq_exp.quantization.allocation import divergence, log_probabilities
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.quantize import quantize
from ptq_exp.reporting.plots.style import BLUE, GREY, SMALL, TEXT, WIDTH, add_axes, canvas, save, write_title
from ptq_exp.runs.device import hardware, pick_device
from ptq_exp.runs.fitting import FloatModel
from ptq_exp.runs.float_model import load_or_train

RESULTS = PROJECT_ROOT / "bench" / "results" / "steps.jsonl"
FIGURES = PROJECT_ROOT / "docs" / "figures"
PRESET = (2000, 2500)  # steps of quant=best per block, and on the whole network
# steps per block (0: rounded to nearest), and on the whole network
ALL_STEPS = [
    (0, 100), (0, 250), (0, 1000), (0, 2500), (50, 250), (100, 250), (100, 1000), (250, 0), (250, 500), (250, 2500),
    (500, 1000), (1000, 2500), (2000, 1000), PRESET,
]  # fmt: skip
FEW_STEPS = [(100, 250), (250, 0), (250, 500), (500, 1000), PRESET]
NETWORKS = {"ResNet-20": ALL_STEPS, "ResNet-56": FEW_STEPS, "mobilenet_v2": FEW_STEPS}
WIDTHS: dict[str, tuple[int, int | None]] = {"W2": (2, None), "W3": (3, None), "W4A4": (4, 4), "W2A2": (2, 2)}
CALIBRATION_IMAGES, JUDGED = 4096, 10_000
AT_ONCE = 2000  # judged images
PANEL, ACROSS, LEFT, GAP, TOP = 2.3, 2.6, 0.85, 0.85, 0.75  # inches


def main() -> None:
    """Measure the missing results, then draw the figures."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="networks or widths to measure, such as ResNet-56 W2")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    done = {(line["network"], tuple(line["steps"]), line["widths"]) for line in read_lines(arguments.results)}
    widths = selected(WIDTHS, arguments.only)
    for network in selected(NETWORKS, arguments.only):
        tasks = [(steps, name) for name in widths for steps in NETWORKS[network] if (network, steps, name) not in done]
        if not tasks:
            continue
        case = case_of(network, arguments, device)
        for steps, name in tasks:
            keep({"network": network} | measured(case, steps, name), device, arguments.results)
    lines = read_lines(arguments.results)
    for network in NETWORKS:
        own = [line for line in lines if line["network"] == network]
        if own:
            draw(network, own)


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser for the places of the networks and the images."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0] if description else "")
    shared = PROJECT_ROOT.parent / "shared"
    parser.add_argument("--checkpoint", default=str(shared / "checkpoints" / "resnet20-12fca82f.th"))
    parser.add_argument("--networks", type=Path, default=shared / "checkpoints" / "foreign")
    parser.add_argument("--lossless", default=str(shared / "data" / "cifar10-lossless-6k.zip"))
    parser.add_argument("--jpeg", default=str(shared / "data" / "cifar10-jpeg.tar.gz"))
    parser.add_argument("--cache", default=None, help="folder of decoded images")
    parser.add_argument("--device", default="auto")
    return parser


def config_of(network: str, arguments: argparse.Namespace) -> Config:
    """The configuration that loads or trains a network, and reads the images for its calibration."""
    if network == "ResNet-20":
        return on_images(arguments.lossless, arguments.cache, arguments.checkpoint)
    if network == "ResNet-56":
        return on_images(arguments.jpeg, arguments.cache, "auto", "model=resnet56", *FAST)
    return foreign.config_of(network, arguments)


@dataclasses.dataclass(frozen=True)
class Case:
    """A float network, the images that it is calibrated with, and the images that judge its quantization."""

    network: FloatModel
    calibration: Calibration
    judged: Tensor

    def measured(self, work: Callable[[], nn.Module]) -> dict[str, Any]:
        """The seconds of `work`, and the divergence in nats of the network that it makes from the float network."""
        started = time.perf_counter()
        found = work()
        if self.judged.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        with torch.no_grad():
            parts = self.judged.split(AT_ONCE)
            wanted = (log_probabilities(self.network.model, part) for part in parts)
            lost = sum(divergence(found, *pair) for pair in zip(parts, wanted, strict=True)) / len(parts)
        return {"seconds": seconds, "divergence": lost}


def case_of(network: str, arguments: argparse.Namespace, device: torch.device) -> Case:
    """Load or train a network, and read its images."""
    config = config_of(network, arguments)
    dataset = load_dataset(config.data, config.cache, device)
    found = load_or_train(config, dataset, device)
    order = torch.randperm(len(dataset.train_images), generator=torch.Generator().manual_seed(0)).to(device)
    calibration = Calibration(found.normalize(dataset.train_images[order[:CALIBRATION_IMAGES]]))
    if network == "ResNet-20":
        jpeg = load_dataset(on_images(arguments.jpeg, arguments.cache).data, config.cache, torch.device("cpu"))
        chosen = torch.randperm(len(jpeg.train_images), generator=torch.Generator().manual_seed(7))[:JUDGED]
        judged = found.normalize(jpeg.train_images[chosen].to(device))
    else:
        judged = found.normalize(dataset.train_images[order[-JUDGED:]])
    case = Case(found, calibration, judged)
    measured(case, (1, 1), "W4A4")  # libraries and kernels are loaded
    return case


def options_of(steps: tuple[int, int], widths: str, share: float = 1.0) -> tuple[QuantConfig, int]:
    """`quant=best` at some widths with other numbers of steps, and the bits of the weights. The learning rate of the
    rounding variables is divided by `share`."""
    (per_block, whole), (bits, act_bits) = steps, WIDTHS[widths]
    options = preset("best", act_bits=act_bits, **({} if per_block else {"rounding": "nearest"}))
    how = options.reconstruction
    how = dataclasses.replace(how, steps=max(per_block, 1), distill_steps=whole, lr=how.lr / share)
    return dataclasses.replace(options, reconstruction=how), bits


def measured(case: Case, steps: tuple[int, int], widths: str, share: float = 1.0) -> dict[str, Any]:
    """Quantize once: the seconds, and the divergence."""
    options, bits = options_of(steps, widths, share)
    found = case.measured(lambda: quantize(case.network.model, options, bits, case.calibration).network)
    return {"steps": list(steps), "widths": widths} | found


def keep(line: dict[str, Any], device: torch.device, results: Path) -> None:
    """Append a measurement to `results`, and print it."""
    line |= {"hardware": hardware(device), "date": time.strftime("%Y-%m-%d")}
    add_line(line, results)
    print(line, flush=True)


def draw(network: str, lines: list[dict[str, Any]]) -> None:
    """One panel per widths: divergence against seconds, with the settings that no other one dominates joined."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, first = canvas(
        TOP + 2 * (PANEL + GAP), left=LEFT, bottom=GAP + PANEL + GAP, top=TOP, right=WIDTH - LEFT - ACROSS
    )
    places = [(1, 1), (0, 0), (1, 0)]
    others = [add_axes(figure, LEFT + x * (ACROSS + LEFT), GAP + y * (PANEL + GAP), ACROSS, PANEL) for x, y in places]
    for axes, widths in zip([first, *others], WIDTHS, strict=True):
        own = [line for line in lines if line["widths"] == widths]
        axes.set_visible(bool(own))
        if not own:
            continue
        points = {tuple(line["steps"]): (line["seconds"], line["divergence"]) for line in own}
        front = [place for place in points.values() if not any(dominates(other, place) for other in points.values())]
        axes.plot(*zip(*points.values(), strict=True), "o", color=GREY, markersize=4)
        axes.plot(*zip(*sorted(front), strict=True), "o-", color=BLUE, linewidth=1.5, markersize=5)
        axes.set(xscale="log", yscale="log", xlabel="seconds", ylabel="divergence (nats)")
        axes.set_title(widths, loc="left", fontsize=TEXT)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        labelled = float("inf")
        for (per_block, whole), place in sorted(points.items(), key=lambda entry: entry[1]):
            if place in front and place[1] < 0.94 * labelled:  # neighbouring labels would overlap
                look = {"xytext": (-5, -10), "ha": "right", "fontsize": SMALL - 2}
                axes.annotate(f"{per_block} + {whole}", place, textcoords="offset points", **look)
                labelled = place[1]
        axes.margins(0.12)
        axes.set_xlim(left=axes.get_xlim()[0] / 1.6)
    write_title(figure, f"{network}: steps per block + steps on the network")
    path = FIGURES / f"steps_{network.lower().replace('-', '')}.png"
    save(figure, path, vector=False)


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether `one` is at least as fast and as accurate as `other`, and not the same."""
    return one != other and one[0] <= other[0] and one[1] <= other[1]


if __name__ == "__main__":
    main()
