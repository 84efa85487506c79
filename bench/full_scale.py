"""Full-scale training, then quantization at all bit widths: `python -m bench.full_scale --jpeg ... --lossless ...`.

Trains ResNet-20 with the notebook's recipe (or `--recipe fast`) on all 50,000 training images as JPEG files, with
several seeds. Each network is quantized to 2 to 8 bits with the presets notebook and best. Lines are appended to
bench/results/full_scale.jsonl and float weights are kept under `--weights`; existing results are not computed again.
Then the tables of docs/results.md are written. Needs neither Hydra nor MLflow.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.accuracy import RESULTS_PAGE, is_current, mean_and_std, write_between
from bench.harness import on_images, preset
from bench.workers import read_lines, share_out
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.config import Config
from ptq_exp.config.compose import compose
from ptq_exp.data import load_dataset
from ptq_exp.evaluation.accuracy import evaluate
from ptq_exp.networks.store import save_weights
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.quantize import quantize
from ptq_exp.runs.device import pick_device
from ptq_exp.runs.float_model import load_or_train

CALIBRATION_IMAGES = 4096
RESULTS = PROJECT_ROOT / "bench" / "results" / "full_scale.jsonl"
BITS = (2, 3, 4, 5, 6, 7, 8)
PRESETS = ("notebook", "best")

# What is measured: ("float", recipe, precision, seed) or ("quantized", preset, bits, seed).
Task = tuple[str, str, str | int, int]


def main() -> None:
    """Measure the missing results, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jpeg", default="../shared/data/cifar10-jpeg.tar.gz")
    parser.add_argument("--lossless", default="../shared/data/cifar10-lossless-6k.zip")
    parser.add_argument("--cache", default=None, help="folder of decoded images")
    parser.add_argument("--weights", type=Path, default=PROJECT_ROOT / "cache" / "full_scale")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipe", default="notebook", choices=["notebook", "fast"])
    parser.add_argument("--epochs", type=int, default=None, help="epochs instead of the recipe's, for comparison")
    parser.add_argument(
        "--batch-size", type=int, default=None, help="batch size instead of the recipe's, for comparison"
    )
    parser.add_argument("--precision", default=None, help="precision of the training; default: the recipe's")
    parser.add_argument("--fused", action="store_true", help="train with this project's own kernels (CUDA)")
    parser.add_argument("--no-quantization", action="store_true", help="train and evaluate the float networks only")
    parser.add_argument("--workers", type=int, default=1, help="number of parallel processes")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no new measurement after this many minutes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.weights.mkdir(parents=True, exist_ok=True)
    for key in ("epochs", "batch_size"):
        if value := getattr(arguments, key):
            arguments.recipe += f", {key} {value}"
    started = time.time()
    for archive in (arguments.jpeg, arguments.lossless):  # decoded once, before the workers need them
        config = on_images(archive, arguments.cache)
        load_dataset(config.data, config.cache, torch.device("cpu"))
    precision = arguments.precision or recipe(arguments.recipe).trainer.precision
    seeds = range(arguments.seeds)
    stages: list[list[Task]] = [[("float", arguments.recipe, precision, seed) for seed in seeds]]
    if not arguments.no_quantization:
        stages.append([("quantized", name, bits, seed) for bits in BITS for seed in seeds for name in PRESETS])
    for tasks in stages:
        done = {tuple(line["task"]) for line in read(arguments.results)}
        missing = [task for task in tasks if task not in done]
        left = arguments.minutes - (time.time() - started) / 60
        if missing and left > 0:
            share_out(missing, arguments.workers, ready, arguments, arguments.results, left)
    table = table_of(read(arguments.results))
    print(table)
    if arguments.results == RESULTS:
        write_between(RESULTS_PAGE, "full scale", table)


def read(path: Path) -> list[dict[str, Any]]:
    """The measurements so far with the current recipes and presets."""
    lines, configs = read_lines(path), {name: preset(name) for name in PRESETS}
    trained = {line["task"][1] for line in lines if line["task"][0] == "float"}
    recipes = {name: _without_empty(described(recipe(name))) for name in trained}

    def is_today(line: dict[str, Any]) -> bool:
        kind, name = line["task"][:2]
        if kind == "quantized":
            return is_current(line, configs[name])
        return _without_empty(line.get("recipe", {})) == recipes[name]

    return [line for line in lines if is_today(line)]


def described(config: Config) -> dict[str, Any]:
    """The part of a training that a line stores to distinguish versions of the recipe: everything but the precision and
    the kernels, which have their own fields."""
    trainer = dataclasses.asdict(config.trainer)
    kept = {key: value for key, value in trainer.items() if key not in ("precision", "fused")}
    return {"trainer": kept, "optimizer": config.optimizer, "scheduler": config.scheduler}


def _without_empty(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without null and false values, because later versions have more such keys."""
    return {group: {key: value for key, value in values.items() if value} for group, values in recipe.items()}


def recipe(name: str) -> Config:
    """The configuration of the notebook or of a file in conf/trainer. Trainer keys and values may follow the name,
    as in "fast, epochs 60"."""
    name, *changes = name.split(", ")
    trainer = "default" if name == "notebook" else name
    return compose(f"trainer={trainer}", *(f"trainer.{change.replace(' ', '=')}" for change in changes))


def ready(arguments: argparse.Namespace) -> Callable[[Task], dict[str, Any]]:
    """Load the images, and return the function that measures one task."""
    device = pick_device("auto")
    images = on_images(arguments.jpeg, arguments.cache)
    jpeg = load_dataset(images.data, images.cache, device)
    archive = on_images(arguments.lossless, arguments.cache).data
    lossless = load_dataset(archive, images.cache, torch.device("cpu")).to(device)
    tests = {
        "jpeg": (jpeg.test_images, jpeg.test_labels),
        "lossless": (lossless.test_images, lossless.test_labels),
    }

    def network(name: str, precision: str, seed: int) -> Any:
        """The float network of one seed, from its file if there is one, else trained."""
        file = weights_file(arguments.weights, name, precision, seed)
        config = dataclasses.replace(
            recipe(name), seed=seed, cache_dir=arguments.cache, data=on_images("", None).data,
            checkpoint=str(file) if file.exists() else "train",  # "auto" might use the shipped network
        )  # fmt: skip
        config.trainer.precision, config.trainer.fused = precision, arguments.fused
        found = load_or_train(config, jpeg, device)
        if not file.exists():
            save_weights(file, found.model.state_dict(), _about(found, jpeg.fingerprint(), seed))
        return found

    def measure(task: Task) -> dict[str, Any]:
        kind, name, variant, seed = task
        started = time.perf_counter()
        line: dict[str, Any] = {"task": list(task)}
        if kind == "float":
            float_model = network(name, str(variant), seed)
            model = float_model.model
            line |= {"best_epoch_jpeg": max((epoch["test_top1"] for epoch in float_model.history), default=None)}
            line |= {"fused": arguments.fused, "recipe": described(recipe(name))}
        else:
            precision = arguments.precision or recipe(arguments.recipe).trainer.precision
            float_model = network(arguments.recipe, precision, seed)
            order = torch.randperm(len(jpeg.train_images), generator=torch.Generator().manual_seed(seed))
            images = float_model.normalize(jpeg.train_images[order[:CALIBRATION_IMAGES].to(device)])
            config = preset(name)
            quantized = quantize(float_model.model, config, int(variant), Calibration(images, seed))
            model, report = quantized.network, quantized.report
            line |= {
                "quant": dataclasses.asdict(config),
                "bits_mean": report.bits_mean,
                "size_bytes": report.size_bytes,
            }
        line["seconds"] = time.perf_counter() - started
        for test, (images, labels) in tests.items():
            line[test] = evaluate(model, images, labels, float_model.normalize).top1
        return line

    return measure


def weights_file(folder: Path, name: str, precision: str, seed: int) -> Path:
    """The file of the float weights of one training."""
    return folder / f"resnet20-{name.replace(', ', '-').replace(' ', '-')}-{precision}-seed{seed}.safetensors"


def _about(float_model: Any, fingerprint: str, seed: int) -> dict[str, Any]:
    config = float_model.config
    return {
        **float_model.options, "classes": 10, "mean": config.data.mean, "std": config.data.std, "seed": seed,
        "data": "cifar10", "data_fingerprint": fingerprint, "optimizer": config.optimizer,
        "scheduler": config.scheduler, "trainer": dataclasses.asdict(config.trainer), "torch": str(torch.__version__),
    }  # fmt: skip


def table_of(lines: list[dict[str, Any]]) -> str:
    """Two Markdown tables: the float networks by recipe and precision, and top-1 by bit width."""
    rows = ["| recipe, precision | JPEG test | lossless test | seeds | seconds per seed |", "|---|---|---|---|---|"]
    kinds = sorted({tuple(line["task"][:3]) for line in lines}, key=str)
    for kind in kinds:
        found = [line for line in lines if tuple(line["task"][:3]) == kind]
        values = [mean_and_std([line[key] for line in found]) for key in ("jpeg", "lossless")]
        if kind[0] == "float":
            seconds = statistics.median(line["seconds"] for line in found)
            rows.append(f"| {kind[1]}, {kind[2]} | {values[0]} | {values[1]} | {len(found)} | {seconds:.0f} |")
    bits = sorted({kind[2] for kind in kinds if kind[0] == "quantized"})
    rows += ["", f"| preset, images | {' | '.join(map(str, bits))} |", "|---" * (len(bits) + 1) + "|"]
    for name in PRESETS:
        for test in ("jpeg", "lossless"):
            found = [[line[test] for line in lines if line["task"][:3] == ["quantized", name, b]] for b in bits]
            rows.append(
                f"| {name}, {test} | {' | '.join(mean_and_std(values) if values else '-' for values in found)} |"
            )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
