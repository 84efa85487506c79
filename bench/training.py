"""Training: the notebook's loop against ours, on the same model and images: `python -m bench.training`.

Measures images per second over whole epochs. The images have the shape of CIFAR-10; their content does not affect the
time.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from bench import notebook
from bench.harness import floor_seconds, machine_rates, resnet20_cost, rows_of, save, take_turns
from ptq_exp.base.machine import tf32
from ptq_exp.data.loader import Normalizer, TrainingLoader
from ptq_exp.networks import build_model
from ptq_exp.runs.device import pick_device
from ptq_exp.training.loop import build_optimizer, train_epoch
from ptq_exp.training.step import TrainingStep

BATCH = 160
COMPILE = ("default", "reduce-overhead", "max-autotune")  # modes of torch.compile; compiled in the warm-up round
SGD = {"lr": 0.022, "momentum": 0.9, "weight_decay": 9e-5}


def main() -> None:
    """Time one epoch of each loop in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--images", type=int, default=None, help="images per epoch; default: 49,920 on CUDA, 1,600 on a CPU"
    )
    parser.add_argument("--compile", nargs="*", choices=COMPILE, help="modes of torch.compile; default: all on CUDA")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = pick_device("auto")
    # Whole batches: for a smaller last one, torch.compile would compile everything again.
    count = arguments.images or (312 * BATCH if device.type == "cuda" else 10 * BATCH)
    modes = arguments.compile if arguments.compile is not None else COMPILE[: 3 if device.type == "cuda" else 1]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    baseline = "the notebook's loop"
    cases = {baseline: _notebook(images, labels, device)}
    images, labels = images.to(device), labels.to(device)
    cases["plain loop, images on the device"] = _plain(images, labels, device)
    for mode in modes:
        cases[f"plain loop, torch.compile, {mode}"] = _plain(images, labels, device, mode)
    for precision in ("fp32", "tf32", "bf16") if device.type == "cuda" else ("fp32",):
        cases[f"ours, {precision}"] = _ours(images, labels, device, precision)
    timed = take_turns(cases, arguments.rounds, device)
    rows = rows_of(timed, baseline)
    for row in rows:
        row["images_per_second"] = count / row["seconds"]
    cost = {
        key: 3 * value for key, value in resnet20_cost(count).items()
    }  # the backward pass costs twice the forward pass
    floor = floor_seconds(cost, machine_rates(device))
    speeds = ", ".join(f"{row['case']} {row['images_per_second']:,.0f}" for row in rows)
    ours = next(row for row in rows if row["case"] == "ours, fp32")
    quickest = min(row["seconds"] for row in rows if row["case"].startswith("ours"))
    compiled = [row["seconds"] for row in rows if "torch.compile" in row["case"]]
    minutes = [180 * 50_000 / count * seconds / 60 for seconds in (rows[0]["seconds"], ours["seconds"], quickest)]
    notes = [
        f"Images per second: {speeds}.",
        f"Ours is {rows[0]['seconds'] / ours['seconds']:.1f} times as fast as the notebook's loop in fp32, and "
        f"{rows[0]['seconds'] / quickest:.1f} times in the fastest precision.",
        "The notebook's loop lets cuDNN use TF32, as PyTorch does by default. 180 epochs of 50,000 images would take "
        f"{minutes[0]:.1f} minutes with it, {minutes[1]:.1f} with ours in fp32, and {minutes[2]:.1f} in the "
        "fastest precision.",
        f"Lower bound of an epoch at this machine's float32 rates: {floor:.3f} s; "
        f"fp32 takes {ours['seconds'] / floor:.1f} times that.",
    ]
    if compiled:
        least = min(compiled)
        notes.append(
            f"With the fastest mode of torch.compile, the plain loop takes {least / ours['seconds']:.1f} times as long "
            f"as ours in fp32 and {least / quickest:.1f} times as long as ours in the fastest precision."
        )
    content = {"unit": f"seconds per epoch of {count:,} images", "ratio_of": "relative to the notebook"}
    save("training", device, content | {"rows": rows, "floor_seconds": floor, "notes": notes})


def _model(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet", 10, depth=20, shortcut="conv").to(device)


def _notebook(images: torch.Tensor, labels: torch.Tensor, device: torch.device) -> Callable[[], object]:
    model = _model(device)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    batches = notebook.loader(images, labels, train=True)

    def epoch() -> None:
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = True, False  # PyTorch's defaults
        try:
            notebook.train_epoch(model, batches, optimizer, device)
        finally:
            torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True

    return epoch


def _plain(
    images: torch.Tensor, labels: torch.Tensor, device: torch.device, compiled: str | None = None
) -> Callable[[], object]:
    """PyTorch's own loop; with `torch.compile`, in the layout and the precision that it is fastest in."""
    model = _model(device)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    normalize = Normalizer(notebook.MEAN, notebook.STD, device)
    batches = TrainingLoader(images, labels, BATCH, 4, True, seed=0)
    forward: Callable[[torch.Tensor], torch.Tensor] = model
    if compiled:
        forward = torch.compile(model.to(memory_format=torch.channels_last), mode=compiled)

    def epoch() -> None:
        model.train()
        with tf32(compiled is not None):
            for x, y in batches.epoch(0):
                optimizer.zero_grad()
                given = normalize(x)
                F.cross_entropy(forward(given if compiled else given.contiguous()), y).backward()
                optimizer.step()

    return epoch


def _ours(images: torch.Tensor, labels: torch.Tensor, device: torch.device, precision: str) -> Callable[[], object]:
    model = _model(device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer({"_target_": "torch.optim.SGD", **SGD}, list(model.parameters()))
    step = TrainingStep(model, Normalizer(notebook.MEAN, notebook.STD, device), optimizer, precision, fused=True)
    batches = TrainingLoader(images, labels, BATCH, 4, True, seed=0)
    return lambda: train_epoch(step, batches, 0, lambda *_, **__: None)


if __name__ == "__main__":
    main()
