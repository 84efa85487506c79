"""Which mistakes does the batch-norm check notice? `python -m bench.consistency --data-root ARCHIVE --foreign FOLDER`.

Applies every mistake of `bench.mistakes`, wrong normalization constants and wrong images to correct networks: this
project's ResNet-20 and the networks in FOLDER (see its README.md). Measures top-1 on 500 test images and
records what the program says. Writes bench/results/consistency.jsonl and the table in docs/results.md.
"""

import argparse
import importlib.util
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.accuracy import RESULTS_PAGE, write_between
from bench.foreign import INVERTED_RESIDUALS
from bench.harness import on_images
from bench.mistakes import DENSENET, MOBILENET, RESNET, WIDE_RESNET, Mistake
from ptq_exp.base.console import log
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.data import load_dataset
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.loader import Normalizer
from ptq_exp.data.normalization import KNOWN
from ptq_exp.data.options import DataOptions
from ptq_exp.evaluation.accuracy import evaluate
from ptq_exp.evaluation.batch_norm_check import check_constants, choose_constants
from ptq_exp.networks import build_model
from ptq_exp.networks.reading import load_weights, read_checkpoint
from ptq_exp.runs.device import pick_device

RESULTS = PROJECT_ROOT / "bench" / "results" / "consistency.jsonl"
TRAINED_WITH = KNOWN[0]  # the constants of the foreign networks and of the shipped one

Line = dict[str, Any]


def main() -> None:
    """Check every network with every mistake, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data-root", required=True, help="folder or archive of the CIFAR-10 images")
    parser.add_argument("--foreign", type=Path, required=True, help="folder of networks that ptq_exp did not build")
    parser.add_argument("--files", nargs="*", default=[], help="more checkpoints of ResNets with pad shortcuts")
    parser.add_argument("--cache", default=None, help="folder of decoded images")
    arguments = parser.parse_args()
    device = pick_device("auto")
    config = on_images(arguments.data_root, arguments.cache)
    images = load_dataset(config.data, config.cache, torch.device("cpu")).limited(4_000, 500)
    digits = load_dataset(DataOptions(name="digits", resize=32), config.cache, torch.device("cpu"))
    lines = []
    for network, (build, mistakes, side) in networks(arguments.foreign, arguments.files).items():
        for line in measure(build, mistakes, images, replace(digits, classes=images.classes), side, device):
            lines.append({"network": network, **line, "device": str(device)})
            print(json.dumps(lines[-1]), flush=True)
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_between(RESULTS_PAGE, "consistency", table_of(lines))


def networks(folder: Path, files: list[str]) -> dict[str, tuple[Callable[[], Any], dict[str, Mistake], int]]:
    """How to build each network, its mistakes and the side of its images in pixels."""
    import torchvision  # imported here, since only this benchmark needs it

    spec = importlib.util.spec_from_file_location("wide_resnet", folder / "wide_resnet.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def loaded(model: nn.Module, name: str) -> nn.Module:
        model.load_state_dict(torch.load(folder / name, weights_only=True))
        return model

    def mobilenet() -> nn.Module:
        arguments: dict[str, Any] = {"width_mult": 0.5, "dropout": 0.1, "inverted_residual_setting": INVERTED_RESIDUALS}
        return loaded(torchvision.models.mobilenet_v2(num_classes=10, **arguments), "mobilenet_v2.pt")

    def densenet() -> nn.Module:
        model = torchvision.models.DenseNet(12, (8, 8, 8), num_init_features=24, num_classes=10)
        return loaded(model, "densenet.pt")

    def ours(file: str | Path) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            checkpoint = read_checkpoint(str(file), PROJECT_ROOT / "cache", 15.0)
            model = build_model(checkpoint.architecture, checkpoint.classes, **checkpoint.options)
            load_weights(model, checkpoint)
            return model

        return build

    shipped = {name: change for name, change in RESNET.items() if name != "shortcut padded at one end"}
    return {
        "ResNet-20": (ours(PROJECT_ROOT / "checkpoints" / "resnet20-cifar10.safetensors"), shipped, 32),
        "MobileNetV2": (mobilenet, MOBILENET, 32),
        "WRN-16-2": (lambda: loaded(module.WideResNet(), "wrn16_2.pt"), WIDE_RESNET, 32),
        "DenseNet": (densenet, DENSENET, 64),
        **{Path(file).stem: (ours(file), RESNET, 32) for file in files},
    }


def measure(
    build: Callable[[], Any], mistakes: dict[str, Mistake], images: Dataset, digits: Dataset, side: int, device: Any
) -> Iterator[Line]:
    """One line for each mistake: what the program says, top-1 in percent and the seconds of the check."""

    def checked(mistake: str, model: Any, data: Dataset, given: Any = None) -> Line:
        model, data = model.to(device).eval(), data.to(device)
        with Listening() as said:
            started = time.perf_counter()
            if given is None:
                used = choose_constants(model, data)
            else:
                check_constants(model, data, given, "given by data.mean and data.std")
                used = given
            seconds = time.perf_counter() - started
        assert used is not None
        normalize = Normalizer(used.mean, used.std, device)
        top1 = evaluate(model, data.test_images, data.test_labels, normalize).top1
        return {"mistake": mistake, "constants": used.name, "said": said.lines, "top1": top1, "seconds": seconds}

    right = images if side == 32 else images.resized(side)
    yield checked("none", build(), right)
    for known in KNOWN:
        if known is not TRAINED_WITH:
            yield checked(f"given: {known.name}", build(), right, known)
    for name, change in mistakes.items():
        model = build()
        change(model)
        yield checked(name, model, right)
    other_side = 64 if side == 32 else 32
    yield checked(f"images of {other_side} pixels", build(), images.resized(other_side))
    yield checked("images of digits", build(), digits if side == 32 else digits.resized(side))
    noise = torch.randint(0, 256, right.train_images.shape, generator=torch.Generator().manual_seed(0))
    yield checked("noise", build(), replace(right, train_images=noise.to(torch.uint8)))


class Listening(logging.Handler):
    """Collects the warnings in `lines`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        self.lines.append(record.getMessage())

    def __enter__(self) -> "Listening":
        log.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        log.removeHandler(self)


def table_of(lines: list[Line]) -> str:
    """The Markdown table: a row per mistake, what was said of each network (top-1 in parentheses)."""
    names = list(dict.fromkeys(line["network"] for line in lines))
    cells = {(line["mistake"], line["network"]): f"{_short(line['said'])} ({line['top1']:.1f})" for line in lines}
    rows = [f"| mistake | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for mistake in dict.fromkeys(line["mistake"] for line in lines):
        rows.append(f"| {mistake} | " + " | ".join(cells.get((mistake, name), "") for name in names) + " |")
    return "\n".join(rows)


def _short(said: list[str]) -> str:
    """The gist of the warnings."""
    gists = {
        "No known normalization": "no constants fit", "The normalization": "wrong constants",
        "The network fits better": "BGR", "The network does not match": "from", "The network fits its own": "gradually",
    }  # fmt: skip
    found = []
    for line in said:
        gist = next((gist for start, gist in gists.items() if line.startswith(start)), line)
        if gist == "from":
            gist = f"from `{line.split(' from ')[1].split(' on:')[0]}` on"
        found.append(f"{gist}, set data.resize" if "data.resize=" in line else gist)
    return "; ".join(found) or "silent"


if __name__ == "__main__":
    main()
