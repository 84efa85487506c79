"""How the cost of `quant=best` grows with the work: `python -m bench.growth`.

Time and peak memory of quantization to W4A4 over the depth of a ResNet, the number of calibration images, and their
size; and the time of a sweep with its report over the number of jobs. Networks and images are random: their values do
not affect the cost. On a CPU, `--share` cuts the steps. Every case runs in a process of its own, whose peak memory
on a CPU is all of it, with torch. Only the axis `jobs` needs Hydra and MLflow.
"""

import argparse
import dataclasses
import math
import multiprocessing
import resource
import statistics
import time

import torch

from bench.harness import preset, save
from ptq_exp.networks import build_model
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.quantize import quantize
from ptq_exp.runs.device import pick_device

AXES = {
    "depth": [20, 32, 56, 110],
    "calibration images": [512, 1024, 4096, 16384],
    "pixels per image": [32**2, 64**2, 128**2, 224**2],
    "jobs": [10, 100, 1000],
}
USUAL = {"depth": 20, "calibration images": 1024, "pixels per image": 32**2}


def main() -> None:
    """Measure every axis, then fit its exponents."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--share", type=float, default=1.0, help="share of the preset's steps")
    parser.add_argument("--axes", nargs="*", default=[axis for axis in AXES if axis != "jobs"], choices=AXES)
    parser.add_argument("--checkpoint", default="../shared/checkpoints/resnet20-12fca82f.th", help="for the axis jobs")
    parser.add_argument("--images", default="../shared/data/cifar10-jpeg.tar.gz", help="for the axis jobs")
    arguments = parser.parse_args()
    sweep_of = arguments.checkpoint, arguments.images
    device = pick_device("auto")
    rows, notes = [], []
    for axis in arguments.axes:
        many = axis == "jobs"
        measured = [jobs(size, *sweep_of) if many else apart(axis, size, arguments.share) for size in AXES[axis]]
        for size, (seconds, _) in zip(AXES[axis], measured, strict=True):
            ratio = seconds / measured[0][0]
            case = f"{axis}: {size:,}"
            rows.append({"case": case, "seconds": seconds, "lowest": seconds, "highest": seconds, "ratio": ratio})
        taken, memory = ([pair[part] for pair in measured] for part in (0, 1))
        notes.append(
            f"Over {axis}, time grows with the power {exponent(AXES[axis], taken):.2f} "
            f"({exponent(AXES[axis][-2:], taken[-2:]):.2f} between the last two), and peak memory from "
            f"{memory[0]:.2f} to {memory[-1]:.2f} GiB, with the power {exponent(AXES[axis], memory):.2f}."
        )
        content = {"unit": "seconds", "ratio_of": "relative to the first of its kind", "rows": rows, "notes": notes}
        save("growth", device, content)  # after every axis, so that an interruption loses one at most


def exponent(sizes: list[int], values: list[float]) -> float:
    """The slope of the least-squares line through the logarithms."""
    return statistics.linear_regression(list(map(math.log, sizes)), list(map(math.log, values))).slope


def apart(axis: str, size: int, share: float) -> tuple[float, float]:
    """The seconds and the peak GiB of one case in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: tuple[float, float] = pool.apply(quantized, (USUAL | {axis: size}, share))
    print(f"{axis} {size:,}: {found[0]:.1f} s, {found[1]:.2f} GiB", flush=True)
    return found


def quantized(case: dict[str, int], share: float) -> tuple[float, float]:
    """Quantize a random ResNet with random images. The seconds, and the peak memory in GiB."""
    device, side = pick_device("auto"), math.isqrt(case["pixels per image"])
    torch.manual_seed(0)
    network = build_model("resnet", 10, depth=case["depth"], shortcut="conv").to(device).eval()
    images = torch.randn(case["calibration images"], 3, side, side, device=device)
    _once(network, images[:64], 0.002)  # libraries and kernels are loaded
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    _once(network, images, share)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    cpu_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return seconds, torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else cpu_peak


def _once(network: torch.nn.Module, images: torch.Tensor, share: float) -> None:
    options = preset("best", act_bits=4)
    how = options.reconstruction
    steps = {"steps": max(1, round(share * how.steps)), "distill_steps": max(1, round(share * how.distill_steps))}
    options = dataclasses.replace(options, reconstruction=dataclasses.replace(how, **steps))
    quantize(network, options, 4, Calibration(images))


def jobs(count: int, checkpoint: str, images: str) -> tuple[float, float]:
    """The seconds of a sweep of `count` quick jobs with its records and report, and its peak memory in GiB."""
    from bench.sweep import FEW_IMAGES, data_words, multipliers, sweep

    found = sweep([*data_words(checkpoint, images), FEW_IMAGES, multipliers(count)])
    print(f"{count} jobs: {found['seconds']:.1f} s, {found['memory'][1] / 1024:.2f} GiB", flush=True)
    return found["seconds"], found["memory"][1] / 1024


if __name__ == "__main__":
    main()
