"""The accuracy table of docs/results.md: `python -m bench.accuracy --checkpoint ... --lossless ... --jpeg ...`.

Every row is the preset `best` (or `--preset quick`) at its bit widths (`mixed` chooses them per layer), on a checkpoint
that was trained elsewhere. The calibration images are drawn by the seed from the lossless training images, without
labels. If the preset wants more than there are, JPEG training images are added. The table reports top-1 on the lossless
and on the JPEG test images, mean and standard deviation over the seeds. Results are appended to
bench/results/accuracy.jsonl one by one; existing results are not computed again. Needs neither Hydra nor MLflow.
"""

import argparse
import dataclasses
import hashlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.harness import MIRRORED, on_images, preset
from bench.workers import read_lines, share_out
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.data import load_dataset
from ptq_exp.evaluation.accuracy import evaluate
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.quantize import quantize
from ptq_exp.runs.device import pick_device
from ptq_exp.runs.fitting import FloatModel
from ptq_exp.runs.float_model import load_or_train

RESULTS = PROJECT_ROOT / "bench" / "results" / "accuracy.jsonl"
RESULTS_PAGE = PROJECT_ROOT / "docs" / "results.md"
CHECKPOINT = (
    "12fca82f0bebc413"  # first 16 digits of the SHA-256 of resnet20-12fca82f.th, the checkpoint of docs/results.md
)
TABLES = {  # method: the name of its table in docs/results.md
    "best": "table", "quick": "quick", "patient": "patient", f"best {MIRRORED}": "mirrored",
    "best reconstruction.steps=1000 reconstruction.lr=0.05": "half of the steps",
    "patient calibration_images=16384": "patient, more images",
    "patient calibration_images=16384 reconstruction.distill_steps=30000": "patient, more images and steps",
    "patient calibration_images=16384 reconstruction.distill_batch_size=128": "patient, more images per step",
}  # fmt: skip

# Row: bits, changes to the preset, and the results of other tools (measured Nov 2026 as described in docs/results.md).
ROWS: dict[str, tuple[int, dict[str, Any], str]] = {
    "W8": (8, {}, "91.5-92.1 / 81.0 (all)"),
    "W4": (4, {}, "AIMET AdaRound 92.04 / 80.50 s"),
    "W3": (3, {}, "Brevitas GPTQ + bias correction 91.35 / 78.35 s; AIMET AdaRound 91.15 / 79.85 s"),
    "W2 (4 levels)": (2, {}, "AIMET AdaRound 86.82 / 76.50 s"),
    "W ternary (3 levels)": (2, {"grid": "symmetric"}, "-"),
    "W1 (2 levels)": (1, {}, "-"),
    "W8A8": (8, {"act_bits": 8}, "NNCF 92.13 / 81.30"),
    "W4A8": (4, {"act_bits": 8}, "AIMET AdaRound 92.13 / 80.25 s"),
    "W4A4": (4, {"act_bits": 4}, "Brevitas + bias correction 85.45 / 71.05 s"),
    "W2A4": (2, {"act_bits": 4}, "-"),
    "W3A3": (3, {"act_bits": 3}, "-"),
    "W2A2": (2, {"act_bits": 2}, "-"),
    "mixed, mean 2.0": (2, {"mixed": True}, "-"),
}


def main() -> None:
    """Measure the missing results, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--checkpoint", default="../shared/checkpoints/resnet20-12fca82f.th")
    parser.add_argument("--lossless", default="../shared/data/cifar10-lossless-6k.zip")
    parser.add_argument("--jpeg", default="../shared/data/cifar10-jpeg.tar.gz")
    parser.add_argument("--cache", default=None, help="folder of decoded images")
    parser.add_argument("--preset", default="best", help="may change keys: 'best reconstruction.lr=0.05'")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), help="names of rows; default: all")
    parser.add_argument("--workers", type=int, default=1, help="number of parallel processes")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no new measurement after this many minutes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    sha256 = hashlib.sha256(Path(arguments.checkpoint).read_bytes()).hexdigest()[:16]
    done = {(line["row"], line["seed"]) for line in read(arguments.results, sha256, arguments.preset)}
    tasks = [(row, seed) for seed in range(arguments.seeds) for row in arguments.rows if (row, seed) not in done]
    if tasks:
        for archive in (arguments.lossless, arguments.jpeg):  # decoded once, before the workers need them
            config = on_images(archive, arguments.cache)
            load_dataset(config.data, config.cache, torch.device("cpu"))
        share_out(tasks, arguments.workers, ready, arguments, arguments.results, arguments.minutes)
    table = table_of(read(arguments.results, sha256, arguments.preset))
    print(table)
    if sha256 == CHECKPOINT and arguments.preset in TABLES:
        write_between(RESULTS_PAGE, TABLES[arguments.preset], table)


def read(path: Path, sha256: str, name: str = "best") -> list[dict[str, Any]]:
    """The measurements so far of this checkpoint with the current preset `name`."""
    configs = {row: preset(name, bits=bits, **changes) for row, (bits, changes, _) in ROWS.items()}
    return [
        line
        for line in read_lines(path)
        if line["checkpoint"] == sha256 and line["row"] in configs and is_current(line, configs[line["row"]])
    ]


def is_current(line: dict[str, Any], config: QuantConfig) -> bool:
    """Whether `line` was measured with these options. Options that were added later do not count."""
    return "quant" in line and _holds(json.loads(json.dumps(dataclasses.asdict(config))), line["quant"])


def _holds(now: dict[str, Any], then: dict[str, Any]) -> bool:
    """Whether `now` has all values of `then`. Its `name`, its `bits` (those of the row count) and missing keys do not
    count."""
    return all(
        _holds(now[key], value) if isinstance(value, dict) and value else now.get(key) == value
        for key, value in then.items() if key not in ("name", "bits")
    )  # fmt: skip


def ready(arguments: argparse.Namespace) -> Callable[[tuple[str, int]], dict[str, Any]]:
    """Load the images and the network, and return the function that measures one row with one seed."""
    device = pick_device("auto")
    config = on_images(arguments.lossless, arguments.cache, arguments.checkpoint)
    lossless = load_dataset(config.data, config.cache, device)
    jpeg = load_dataset(on_images(arguments.jpeg, None).data, config.cache, torch.device("cpu"))
    jpeg_test = jpeg.test_images.to(device), jpeg.test_labels.to(device)
    float_model = load_or_train(config, lossless, device)
    tests = {"lossless": (lossless.test_images, lossless.test_labels), "jpeg": jpeg_test}
    images = lossless.train_images, jpeg.train_images
    return lambda task: measure(*task, arguments.preset, float_model, images, tests)


def measure(
    row: str,
    seed: int,
    name: str,
    float_model: FloatModel,
    images: tuple[torch.Tensor, torch.Tensor],
    tests: dict[str, tuple[torch.Tensor, torch.Tensor]],
) -> dict[str, Any]:
    """Measure one row with one calibration seed: top-1 on every test set, and the seconds of quantization."""
    bits, changes, _ = ROWS[row]
    config = preset(name, bits=bits, **changes)
    calibration = float_model.normalize(drawn(*images, config.calibration_images, seed))
    started = time.perf_counter()
    quantized = quantize(float_model.model, config, bits, Calibration(calibration, seed))
    if calibration.is_cuda:
        torch.cuda.synchronize()
    line: dict[str, Any] = {"row": row, "seed": seed, "seconds": time.perf_counter() - started}
    line |= {"checkpoint": float_model.digest[:16], "bits_mean": quantized.report.bits_mean}
    line |= {"size_bytes": quantized.report.size_bytes}
    line |= {"quant": dataclasses.asdict(config)}
    for kind, (test_images, labels) in tests.items():
        line[kind] = evaluate(quantized.network, test_images, labels, float_model.normalize).top1
        line[f"{kind}_float"] = evaluate(float_model.model, test_images, labels, float_model.normalize).top1
    return line


def drawn(images: torch.Tensor, more: torch.Tensor, number: int, seed: int) -> torch.Tensor:
    """`number` of `images`, or all of them and some of `more`."""
    generator = torch.Generator().manual_seed(seed)
    if number > len(images):
        order = torch.randperm(len(more), generator=generator)[: number - len(images)]
        images = torch.cat([images, more[order].to(images.device)])
    return images[torch.randperm(len(images), generator=generator)[:number].to(images.device)]


def table_of(lines: list[dict[str, Any]]) -> str:
    """The Markdown table."""
    rows = [
        "| weights / activations | lossless | JPEG | seeds | seconds | best other (lossless / JPEG) |",
        "|---|---|---|---|---|---|",
    ]
    for name, (_, _, others) in ROWS.items():
        found = [line for line in lines if line["row"] == name]
        if found:
            values = [mean_and_std([line[key] for line in found]) for key in ("lossless", "jpeg")]
            seconds = statistics.median(line["seconds"] for line in found)
            rows.append(f"| {name} | {values[0]} | {values[1]} | {len(found)} | {seconds:.0f} | {others} |")
    return "\n".join(rows)


def write_between(path: Path, name: str, text: str) -> None:
    """Replace the text between the markers `name` and `end of name` in a Markdown file, if it has them."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = path.read_text().partition(begin)
    if found:
        path.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


def mean_and_std(values: list[float]) -> str:
    """`91.45 ± 0.20`, or only the value if there is just one."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


if __name__ == "__main__":
    main()
