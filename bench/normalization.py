"""Which normalization constants fit? `python -m bench.normalization --data-root ARCHIVE [--train] [FILE ...]`.

For every checkpoint file, ranks the known normalization constants by their fit to the network's batch norms on the
training images, and measures top-1 on the test images with the best two. With --train, it does the same for ResNet-20s
trained here (trainer=fast), one per known constants. Writes bench/results/normalization.jsonl and the table in
docs/results.md.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.accuracy import RESULTS_PAGE, write_between
from bench.full_scale import recipe
from bench.harness import on_images
from bench.workers import read_lines
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.config import Config
from ptq_exp.data import load_dataset
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.loader import Normalizer
from ptq_exp.data.normalization import KNOWN, Constants, candidates
from ptq_exp.evaluation.accuracy import evaluate
from ptq_exp.evaluation.batch_norm_fit import BatchNormCheck
from ptq_exp.networks import build_model
from ptq_exp.networks.reading import load_weights, read_checkpoint
from ptq_exp.networks.store import save_weights
from ptq_exp.runs.device import pick_device
from ptq_exp.runs.float_model import load_or_train

RESULTS = PROJECT_ROOT / "bench" / "results" / "normalization.jsonl"


def main() -> None:
    """Check every network, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("files", nargs="*", help="checkpoints of ResNets and VGGs with ten classes")
    parser.add_argument("--data-root", required=True, help="folder or archive of the CIFAR-10 images")
    parser.add_argument("--cache", default=None, help="folder of decoded images")
    parser.add_argument("--weights", type=Path, default=PROJECT_ROOT / "cache" / "normalization")
    parser.add_argument("--train", action="store_true", help="also train a ResNet-20 with each of the known constants")
    arguments = parser.parse_args()
    device = pick_device("auto")
    config = on_images(arguments.data_root, arguments.cache)
    dataset = load_dataset(config.data, config.cache, device)
    files = list(arguments.files)
    if arguments.train:
        arguments.weights.mkdir(parents=True, exist_ok=True)
        files += [str(trained(known, config, dataset, arguments.weights, device)) for known in KNOWN]
    lines = {line["network"]: line for line in read_lines(RESULTS)}
    for file in files:
        line = measure(file, config, dataset, device)
        print(json.dumps(line), flush=True)
        lines[line["network"]] = line
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines.values()), encoding="utf-8")
    write_between(RESULTS_PAGE, "normalization", table_of(list(lines.values())))


def trained(constants: Constants, config: Config, dataset: Dataset, folder: Path, device: torch.device) -> Path:
    """The file of a ResNet-20 trained on images normalized by `constants`. Only the file name tells the constants."""
    file = folder / f"ResNet-20 trained here with {constants.name.replace(' ', '_')}.safetensors"
    if not file.exists():
        data = replace(config.data, mean=list(constants.mean), std=list(constants.std))
        fast = replace(recipe("fast"), data=data, cache_dir=config.cache_dir, checkpoint="train")
        save_weights(file, load_or_train(fast, dataset, device).model.state_dict(), {})
    return file


def measure(file: str, config: Config, dataset: Dataset, device: torch.device) -> dict[str, Any]:
    """The two constants that fit the network of `file` best, and its top-1 with both."""
    checkpoint = read_checkpoint(file, config.cache, config.data.timeout)
    model = build_model(checkpoint.architecture, checkpoint.classes, **checkpoint.options)
    load_weights(model, checkpoint)
    model = model.to(device).eval()
    check = BatchNormCheck(model, dataset)
    best, second = check.ranking(candidates(dataset))[:2]

    def top1(constants: Constants) -> float:
        normalize = Normalizer(constants.mean, constants.std, device)
        return evaluate(model, dataset.test_images, dataset.test_labels, normalize).top1

    whole = check.whole(best)
    return {
        "network": Path(file).stem.replace("_", " "), "augmented": best.augmented,
        "best": best.constants.name, "first": whole.first, "mean": whole.mean, "top1": top1(best.constants),
        "second": second.constants.name, "second_first": second.first, "second_top1": top1(second.constants),
        "claim": checkpoint.claim and checkpoint.claim[1], "data": dataset.name,
    }  # fmt: skip


def table_of(lines: list[dict[str, Any]]) -> str:
    """The Markdown table, with one row per network."""
    rows = [
        "| network | fits best | first batch norm | mean of all | top-1 % | second best | first batch norm | top-1 % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        rows.append(
            f"| {line['network']} | {line['best']} | {line['first']:.4f} | {line['mean']:.4f} | {line['top1']:.2f} | "
            f"{line['second']} | {line['second_first']:.4f} | {line['second_top1']:.2f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
