"""Exported files against the simulation, for several networks: `python -m bench.exports --networks FOLDER --jpeg ...`.

FOLDER holds the checkpoints of `bench.foreign`; `--checkpoint` is a ResNet-20; a VGG-16 is trained. Each network is
quantized with few steps of learning, since agreement does not depend on accuracy, exported in every format, and
verified on the 10,000 JPEG test images. Lines are appended to bench/results/exports.jsonl; existing results are not
measured again.
Then the table of docs/export.md is written. With `--keep`, the packed files stay there. Needs neither Hydra nor MLflow.
"""

import argparse
import copy
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import foreign
from bench.accuracy import write_between
from bench.foreign import NETWORKS
from bench.harness import FAST, on_images, preset, selected
from bench.workers import read_lines, share_out
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.config import Config
from ptq_exp.data import load_dataset
from ptq_exp.evaluation.accuracy import evaluate
from ptq_exp.evaluation.integers import check_integers, fully_quantized
from ptq_exp.export import FORMATS
from ptq_exp.export.formats import Subject
from ptq_exp.export.network_file import load_quantized
from ptq_exp.export.verification import TestSet, export_all
from ptq_exp.networks import custom
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.quantize import quantize
from ptq_exp.runs.device import hardware, pick_device
from ptq_exp.runs.float_model import load_or_train

RESULTS = PROJECT_ROOT / "bench" / "results" / "exports.jsonl"
PAGE = PROJECT_ROOT / "docs" / "export.md"
EVERYTHING: dict[str, Any] = {"act_coverage": "all"}
SHIFTS = {"grid": "power_of_two", "scales": "power_of_two", "rounding": "nearest"}
# row -> preset, bits, changes
SETTINGS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "W2": ("best", 2, {}),
    "W3": ("best", 3, {}),
    "W4": ("best", 4, {}),
    "W8": ("best", 8, {}),
    "W8A8": ("best", 8, EVERYTHING | {"act_bits": 8}),
    "W4A8": ("best", 4, EVERYTHING | {"act_bits": 8}),
    "W4A4": ("best", 4, EVERYTHING | {"act_bits": 4}),
    "W2A2": ("best", 2, EVERYTHING | {"act_bits": 2}),
    "integer W8A8": ("integer", 8, {}),
    "integer W7A8": ("integer", 7, {}),
    "integer W4A8": ("integer", 4, {}),
    "integer W8A8, shifts": ("integer", 8, SHIFTS),
}
STEPS, IMAGES = 400, 2048
ALL_IMAGES = 10_000  # test images
# The rows of a network whose files are large.
LARGE = {"vgg16": ("W2", "W4", "W8A8", "W4A8", "W4A4", "W2A2", "integer W8A8", "integer W7A8")}

Task = tuple[str, str]  # network, row


def main() -> None:
    """Measure the missing results, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--networks", type=Path, default=PROJECT_ROOT.parent / "shared" / "checkpoints" / "foreign")
    parser.add_argument("--checkpoint", default="../shared/checkpoints/resnet20-12fca82f.th")
    parser.add_argument("--jpeg", default="../shared/data/cifar10-jpeg.tar.gz")
    parser.add_argument("--cache", default=None, help="folder of decoded images and trained networks")
    parser.add_argument("--only", nargs="*", default=[], help="networks or rows to measure")
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--keep", type=Path, help="folder for the packed files")
    parser.add_argument("--packed", type=Path, help="read the packed files that --keep left, instead of quantizing")
    parser.add_argument("--limit", type=int, default=ALL_IMAGES, help="number of test images")
    parser.add_argument("--workers", type=int, default=1, help="number of parallel processes; speeds need one")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no new measurement after this many minutes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    names = ["resnet20", "vgg16", *NETWORKS]
    for name in names[:1] + names[-1:]:  # decoded once, before the workers need them
        config = config_of(name, arguments)
        load_dataset(config.data, config.cache, torch.device("cpu"))
    machine = hardware(pick_device("auto"))
    done = {tuple(line["task"]) for line in read_lines(arguments.results) if line["device"] == machine}
    rows = selected(SETTINGS, arguments.only)
    there = arguments.packed
    tasks = [
        (name, row) for name in selected(names, arguments.only) for row in LARGE.get(name, SETTINGS)
        if row in rows and (name, row) not in done
        and (there is None or (there / folder_of(name, row)).is_dir())
    ]  # fmt: skip
    if tasks:
        share_out(tasks, arguments.workers, ready, arguments, arguments.results, arguments.minutes)
    table = table_of(read_lines(arguments.results))
    print(table)
    if arguments.results == RESULTS and PAGE.exists():
        write_between(PAGE, "exports", table)


def config_of(name: str, arguments: argparse.Namespace) -> Config:
    """The configuration that loads a network, or trains it."""
    if name == "vgg16":
        return on_images(arguments.jpeg, arguments.cache, "auto", "model=vgg16", *FAST)
    if name == "resnet20":
        return on_images(arguments.jpeg, arguments.cache, arguments.checkpoint)
    return foreign.config_of(name, arguments)


def folder_of(name: str, row: str) -> str:
    """The name of the folder of a task's files."""
    return f"{name}-{row}".replace(", ", "-").replace(" ", "-")


def ready(arguments: argparse.Namespace) -> Callable[[Task], dict[str, Any]]:
    """The function that measures one task."""
    device = pick_device("auto")
    loaded: dict[str, Any] = {}

    def network(name: str) -> Any:
        if name not in loaded:
            config = config_of(name, arguments)
            loaded.clear()
            loaded[name] = load_or_train(config, load_dataset(config.data, config.cache, device), device)
        return loaded[name]

    def measure(task: Task) -> dict[str, Any]:
        name, row = task
        found, (method, bits, changes) = network(name), SETTINGS[row]
        options = preset(method) if changes is SHIFTS else preset(method, **changes)
        distill_steps = 0 if changes is SHIFTS else 2 * STEPS
        learning = dataclasses.replace(options.reconstruction, steps=STEPS, distill_steps=distill_steps)
        options = dataclasses.replace(options, **changes, calibration_images=IMAGES, reconstruction=learning)
        data = found.dataset.limited(None, arguments.limit)
        normalize = found.normalize.to("cpu")
        if arguments.packed:
            (file,) = (arguments.packed / folder_of(name, row)).glob("*.safetensors")
            fresh = copy.deepcopy(found.model).cpu()
            quantized_network, about = load_quantized(file, fresh)
        else:
            quantized_network, about = quantized(found, options, bits)
        simulated = evaluate(quantized_network.to(device), data.test_images, data.test_labels, found.normalize)
        tests = TestSet(data.test_images.cpu(), data.test_labels.cpu(), simulated.predictions, normalize)
        subject = Subject.of(quantized_network, normalize(tests.images[:1])[0], about)
        with tempfile.TemporaryDirectory() as scratch:
            folder = (arguments.keep or Path(scratch)) / folder_of(name, row)
            folder.mkdir(parents=True, exist_ok=True)
            exports = export_all(arguments.formats, subject, folder / f"quantized_w{bits}", tests)
        integers = None
        if fully_quantized(subject.network, options.act_coverage):
            check = check_integers(subject.network, tests.images, normalize)
            integers = dataclasses.asdict(dataclasses.replace(check, rows=()))  # the layers are fifty times as much
        return {
            "task": list(task), "top1": simulated.top1, "size_bytes": about.get("size_bytes"),
            "exports": [dataclasses.asdict(export) for export in exports],
            "integers": integers, "workers": arguments.workers, "images": len(tests.images),
        }  # fmt: skip

    return measure


def quantized(found: Any, options: QuantConfig, bits: int) -> tuple[nn.Module, dict[str, Any]]:
    """A quantized network, and what its packed file says of it."""
    data = found.dataset
    order = torch.randperm(len(data.train_images), generator=torch.Generator().manual_seed(0))[:IMAGES]
    images = found.normalize(data.train_images[order.to(data.train_images.device)])
    result = quantize(found.model, options, bits, Calibration(images, 0))
    about = {
        "model": custom.as_stored(found.options), "classes": list(data.classes), "mean": found.config.data.mean,
        "std": found.config.data.std, "quant": dataclasses.asdict(options) | {"bits": bits}, "contiguous": False,
        "size_bytes": result.report.size_bytes,
    }  # fmt: skip
    return result.network, about


def table_of(lines: list[dict[str, Any]]) -> str:
    """A Markdown table: one row per network and setting.

    A later line of the same row replaces an earlier one, unless it has fewer images. The speeds are those of the last
    line that was measured alone.
    """
    rows = [
        "| network | | size_bytes | packed | program | ONNX | ONNX Runtime agrees | × float, 64 images "
        "| OpenVINO agrees | × float | integer reference agrees | with exact biases |",
        "|---" * 12 + "|",
    ]
    merged: dict[tuple[str, ...], dict[str, Any]] = {}
    for line in lines:
        entry = merged.setdefault(tuple(line["task"]), {"by": {}, "alone": {}, "images": {}})
        measured = {export["metric"]: export for export in line["exports"] if export["agreement"] is not None}
        if line["workers"] == 1:
            entry["alone"] |= measured
        images, before = line.get("images", ALL_IMAGES), entry["images"]
        better = {metric: export for metric, export in measured.items() if images >= before.get(metric, 0)}
        entry["by"] |= better
        entry["images"] |= dict.fromkeys(better, images)
        if line["size_bytes"] is not None:
            entry["size_bytes"] = line["size_bytes"]
        if line["integers"] and images >= before.get("integers", 0):
            entry["integers"] = line["integers"]
            entry["images"]["integers"] = images
    for (name, row), entry in sorted(merged.items(), key=lambda item: _order(*item[0])):
        by, integers = entry["by"], entry.get("integers")
        sizes = [_size(by.get(metric)) for metric in ("packed", "program", "onnx")]
        runs = [
            cell for key in ("onnx", "openvino") for cell in (_agreement(by.get(key)), _ratio(entry["alone"].get(key)))
        ]
        exact = [f"{integers[key]:.2f}" if integers else "" for key in ("agreement", "agreement_exact_biases")]
        fewest = min((entry["images"][key] for key in ("onnx", "openvino") if key in by), default=ALL_IMAGES)
        label = row if fewest == ALL_IMAGES else f"{row} ({fewest:,} images)"
        rows.append(f"| {name} | {label} | {entry['size_bytes']} | {' | '.join([*sizes, *runs, *exact])} |")
    return "\n".join(rows)


def _order(name: str, row: str) -> tuple[int, int]:
    return ["resnet20", "vgg16", *NETWORKS].index(name), list(SETTINGS).index(row)


def _size(export: dict[str, Any] | None) -> str:
    return str(export["size_bytes"]) if export and export["size_bytes"] else "-"


def _agreement(export: dict[str, Any] | None) -> str:
    return f"{export['agreement']:.2f}" if export else "-"


def _ratio(export: dict[str, Any] | None) -> str:
    """The speed relative to float, which says something only if nothing else ran."""
    return f"{export['speed_64'] / export['float_speed_64']:.1f}" if export else "-"


if __name__ == "__main__":
    main()
