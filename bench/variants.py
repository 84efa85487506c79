"""Learning several variants of a network on one GPU: `python -m bench.variants`.

A step of distillation of the published ResNet-20 (2-bit weights, 64 images) is captured as a CUDA graph for each
variant. The graphs are replayed one after the other on one stream, and side by side on separate streams. So are the
passes of a step of float training (160 images). The last rows have what stacked variants would cost: the convolutions
alone, with one group for each variant. The result is written to bench/results/variants-<GPU>.json and to
docs/performance.md. Needs neither Hydra nor MLflow.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness import on_images, preset, save
from ptq_exp.base.machine import tf32
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.data import load_dataset
from ptq_exp.data.loader import Normalizer
from ptq_exp.networks import build_model
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.layers import QuantizedLayer
from ptq_exp.quantization.learned_weights import LearnedWeights
from ptq_exp.quantization.quantize import quantize
from ptq_exp.runs.device import pick_device
from ptq_exp.runs.float_model import load_or_train
from ptq_exp.training.loop import build_optimizer
from ptq_exp.training.step import TrainingStep

COUNTS = (1, 2, 4, 8, 12, 20)
BATCH, ROUNDS, STACKED = 64, 100, 12
TRAININGS, TRAINING_BATCH = 5, 160
KEPT: list[Callable[..., None]] = []  # the captured steps, whose tensors their graphs need
STAGES = ((16, 32, 7), (32, 16, 6), (64, 8, 6))  # of ResNet-20: channels, pixels, 3x3 convolutions


def main() -> None:
    """Measure on the GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    shared = PROJECT_ROOT.parent / "shared"
    parser.add_argument("--checkpoint", default=str(shared / "checkpoints" / "resnet20-12fca82f.th"))
    parser.add_argument("--images", default=str(shared / "data" / "cifar10-lossless-6k.zip"))
    parser.add_argument("--cache", default=None, help="folder of decoded images")
    arguments = parser.parse_args()
    device = pick_device("cuda")
    config = on_images(arguments.images, arguments.cache, arguments.checkpoint)
    found = load_or_train(config, load_dataset(config.data, config.cache, device), device)
    images = found.normalize(found.dataset.train_images[:512])
    streams = [torch.cuda.Stream() for _ in range(max(COUNTS))]
    graphs = [captured(found.model, images, stream) for stream in streams]
    torch.cuda.synchronize()
    rows = []
    for count in COUNTS:
        one, own = (replayed(graphs[:count], places) for places in (streams[:1] * count, streams[:count]))
        rows += [
            row(f"{count} on one stream", one, one),
            row(f"{count} on {count} stream{'s' * (count > 1)}", own, one),
        ]
    saved = 1 / min(line["ratio"] for line in rows)
    seconds = sum(layers * convolution(STACKED, channels, pixels) for channels, pixels, layers in STAGES)
    stacked = row(f"the 3x3 convolutions of {STACKED}, in groups", seconds, one * STACKED / max(COUNTS))
    trainings = [training(device) for _ in streams[:TRAININGS]]
    single, in_turn, own = (
        replayed(trainings[:count], places)
        for count, places in ((1, streams[:1]), (TRAININGS, streams[:1] * TRAININGS), (TRAININGS, streams[:TRAININGS]))
    )
    name = f"{TRAININGS} float trainings"
    rows += [row(f"{name} on one stream", in_turn, in_turn), row(f"{name} on separate streams", own, in_turn)]
    notes = [
        f"Separate streams are up to {saved:.1f} times as fast as one. The convolutions of {STACKED} stacked "
        f"variants alone take {stacked['ratio']:.2f} times as long as whole steps one after the other; the rest of the "
        "step comes on top.",
        f"{name[0].upper()}{name[1:]} on separate streams take {own / single:.1f} times as long as one.",
    ]
    content = {"unit": "seconds per step of all variants", "ratio_of": "relative to one stream", "notes": notes}
    save("variants", device, content | {"rows": [*rows, stacked]})


def row(case: str, seconds: float, reference: float) -> dict[str, Any]:
    """A line of the table."""
    return {"case": case, "seconds": seconds, "lowest": seconds, "highest": seconds, "ratio": seconds / reference}


def captured(network: nn.Module, images: Tensor, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """One step of distillation of a new 2-bit network as a graph."""
    options = preset("best", rounding="nearest")
    options = dataclasses.replace(options, reconstruction=dataclasses.replace(options.reconstruction, distill_steps=0))
    model = quantize(network, options, 2, Calibration(images)).network
    learned = LearnedWeights([module for module in model.modules() if isinstance(module, QuantizedLayer)])
    optimizer = torch.optim.Adam(learned.parameters(), lr=1e-4, capturable=True, fused=True)
    batch = images[:BATCH].contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        wanted = network(batch).log_softmax(1)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        learned()
        with tf32(True):
            F.kl_div(model(batch).log_softmax(1), wanted, log_target=True, reduction="batchmean").backward()
        optimizer.step()

    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    KEPT.append(step)
    return graph


def training(device: torch.device) -> torch.cuda.CUDAGraph:
    """The passes of one step of float training with this project's kernels as a graph."""
    torch.manual_seed(0)
    model = build_model("resnet", 10, depth=20, shortcut="conv").to(device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer({"_target_": "torch.optim.SGD", "lr": 0.01}, list(model.parameters()))
    step = TrainingStep(model, Normalizer([0.5], [0.5], device), optimizer, "bf16", fused=True)
    images = torch.randint(0, 256, (TRAINING_BATCH, 3, 32, 32), dtype=torch.uint8, device=device)
    step(images, torch.randint(0, 10, (TRAINING_BATCH,), device=device))
    assert step.graph is not None
    KEPT.append(step)
    return step.graph


def replayed(graphs: list[torch.cuda.CUDAGraph], streams: list[torch.cuda.Stream]) -> float:
    """The seconds in which every graph is replayed once."""

    def once() -> None:
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()

    return timed(once)


def convolution(groups: int, channels: int, pixels: int) -> float:
    """The seconds of a 3x3 convolution in groups, forward and backward, with the faster of both layouts."""
    seconds = []
    for layout in (torch.channels_last, torch.contiguous_format):
        layer = nn.Conv2d(groups * channels, groups * channels, 3, padding=1, groups=groups, bias=False).cuda()
        layer = layer.to(memory_format=layout)
        shape = BATCH, groups * channels, pixels, pixels
        x = torch.randn(shape, device="cuda").to(memory_format=layout).requires_grad_()

        def once(layer: nn.Module = layer, x: Tensor = x) -> None:
            with tf32(True):
                layer(x).sum().backward()

        seconds.append(timed(once))
    return min(seconds)


def timed(work: Callable[[], None]) -> float:
    """The mean seconds of one call on an otherwise idle GPU."""
    work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(ROUNDS):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / ROUNDS


if __name__ == "__main__":
    main()
