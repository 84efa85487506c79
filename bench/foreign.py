"""Networks that ptq_exp did not build, at several bit widths: `python -m bench.foreign --networks FOLDER --jpeg ...`.

FOLDER holds the checkpoints of `NETWORKS` below. Each is quantized with quant=best (or `--preset patient`) and several
seeds, first and last layer at the same bits, with JPEG calibration images, and evaluated on the JPEG test images. Lines
are appended to bench/results/foreign.jsonl; existing results are not measured again. Then the table of docs/results.md
is written. Needs neither Hydra nor MLflow.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.accuracy import RESULTS_PAGE, is_current, mean_and_std, write_between
from bench.harness import MIRRORED, on_images, preset, selected
from bench.workers import read_lines, share_out
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.data import load_dataset
from ptq_exp.evaluation.accuracy import evaluate
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.quantize import quantize
from ptq_exp.runs.device import pick_device
from ptq_exp.runs.float_model import load_or_train

RESULTS = PROJECT_ROOT / "bench" / "results" / "foreign.jsonl"
TABLES = {  # method: the name of its table in docs/results.md
    "best": "foreign", "patient": "foreign, patient",
    f"best {MIRRORED}": "foreign, mirrored", f"patient {MIRRORED}": "foreign, patient, mirrored",
}  # fmt: skip
INVERTED_RESIDUALS = [
    [1, 16, 1, 1],
    [6, 24, 2, 1],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]
# checkpoint -> constructor, arguments, image size; {} is the folder
NETWORKS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "mobilenet_v2": (
        "torchvision.models.mobilenet_v2",
        {"width_mult": 0.5, "dropout": 0.1, "inverted_residual_setting": INVERTED_RESIDUALS},
        None,
    ),
    "wrn16_2": ("{}/wide_resnet.py:WideResNet", {}, None),
    "densenet": (
        "torchvision.models.DenseNet",
        {"growth_rate": 12, "block_config": [8, 8, 8], "num_init_features": 24},
        64,
    ),
}
# bits of the weights and of the activations
WIDTHS: dict[str, tuple[int, int | None]] = {
    "W8": (8, None), "W4": (4, None), "W3": (3, None), "W2": (2, None), "W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4),
}  # fmt: skip

Task = tuple[str, str, int]  # network, widths, seed


def main() -> None:
    """Measure the missing results, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--networks", type=Path, default=PROJECT_ROOT.parent / "shared" / "checkpoints" / "foreign")
    parser.add_argument("--jpeg", default="../shared/data/cifar10-jpeg.tar.gz")
    parser.add_argument("--cache", default=None, help="folder of decoded images")
    parser.add_argument("--preset", default="best", help="may change keys: 'best reconstruction.lr=0.05'")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], help="networks or widths to measure, such as densenet W4")
    parser.add_argument("--workers", type=int, default=1, help="number of parallel processes")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no new measurement after this many minutes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for size in {size for _, _, size in NETWORKS.values()}:  # decoded once, before the workers need them
        config = images(arguments, size)
        load_dataset(config.data, config.cache, torch.device("cpu"))
    done = {tuple(line["task"]) for line in read(arguments.results, arguments.preset)}
    names, widths = (selected(group, arguments.only) for group in (NETWORKS, WIDTHS))
    tasks = [(name, width, seed) for seed in range(arguments.seeds) for name in names for width in widths]
    if chosen := [task for task in tasks if task not in done]:
        share_out(chosen, arguments.workers, ready, arguments, arguments.results, arguments.minutes)
    table = table_of(read(arguments.results, arguments.preset))
    print(table)
    if arguments.results == RESULTS and arguments.preset in TABLES:
        write_between(RESULTS_PAGE, TABLES[arguments.preset], table)


def read(path: Path, name: str = "best") -> list[dict[str, Any]]:
    """The measurements so far with the current preset `name`."""
    config = preset(name)
    return [
        line for line in read_lines(path) if is_current(line, dataclasses.replace(config, act_bits=line["act_bits"]))
    ]


def images(arguments: argparse.Namespace, size: int | None) -> Any:
    """A configuration that reads the JPEG images, scaled to `size` pixels."""
    config = on_images(arguments.jpeg, arguments.cache)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, resize=size))


def config_of(name: str, arguments: argparse.Namespace) -> Any:
    """The configuration that reads one of `NETWORKS` and its images."""
    target, args, size = NETWORKS[name]
    model = {"name": name, "architecture": "custom", "target": target.format(arguments.networks), "args": args}
    checkpoint = str(arguments.networks / f"{name}.pt")
    return dataclasses.replace(images(arguments, size), model=model, checkpoint=checkpoint)


def ready(arguments: argparse.Namespace) -> Callable[[Task], dict[str, Any]]:
    """The function that measures one task."""
    device = pick_device("auto")
    loaded: dict[str, Any] = {}

    def network(name: str) -> Any:
        if name not in loaded:
            config = config_of(name, arguments)
            dataset = load_dataset(config.data, config.cache, device)
            loaded.clear()
            loaded[name] = load_or_train(config, dataset, device)
        return loaded[name]

    def measure(task: Task) -> dict[str, Any]:
        name, width, seed = task
        bits, act_bits = WIDTHS[width]
        found = network(name)
        options = preset(arguments.preset, act_bits=act_bits)
        order = torch.randperm(len(found.dataset.train_images), generator=torch.Generator().manual_seed(seed))
        chosen = found.dataset.train_images[order[: options.calibration_images].to(device)]
        started = time.perf_counter()
        quantized = quantize(found.model, options, bits, Calibration(found.normalize(chosen), seed))
        seconds = time.perf_counter() - started
        test = found.dataset.test_images, found.dataset.test_labels, found.normalize
        return {
            "task": list(task), "act_bits": act_bits, "top1": evaluate(quantized.network, *test).top1,
            "top1_float": evaluate(found.model, *test).top1, "seconds": seconds,
            "bits_mean": quantized.report.bits_mean, "quant": dataclasses.asdict(options),
        }  # fmt: skip

    return measure


def table_of(lines: list[dict[str, Any]]) -> str:
    """A Markdown table of top-1 by network and widths."""
    rows = [f"| network | float | {' | '.join(WIDTHS)} |", "|---" * (len(WIDTHS) + 2) + "|"]
    for name in NETWORKS:
        own = [line for line in lines if line["task"][0] == name]
        if not own:
            continue
        cells = [[line["top1"] for line in own if line["task"][1] == width] for width in WIDTHS]
        shown = [mean_and_std(values) if values else "-" for values in cells]
        rows.append(f"| {name} | {own[0]['top1_float']:.2f} | {' | '.join(shown)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
