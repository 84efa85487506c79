"""Fair timing: the cases alternate in one process, medians and ratios are reported, and the results form one page.

Absolute times on a shared machine mean little, so every benchmark also runs the case that it is compared with.
"""

import dataclasses
import json
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterable
from datetime import date
from typing import Any

import torch

from ptq_exp.base.machine import installed
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.config import Config
from ptq_exp.config.compose import compose
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.steps import check_method

RESULTS = PROJECT_ROOT / "bench" / "results"
PAGE = PROJECT_ROOT / "docs" / "performance.md"
REMARKS = {
    "training": [
        "",
        "On CUDA, `ours` trains through the project's own kernels (`trainer.fused=true`). The notebook's loop waits "
        "for the CPU, so its time also depends on the rest of the machine.",
    ],
    "evaluation": [
        "",
        "On a GPU, evaluation takes longer than the bound because cuDNN's exact float32 convolutions with few channels "
        "do not reach the card's peak rate. On an NVIDIA H100 (2026-11-26, torch 2.11, torch's profiler in a "
        "script), the passes over 10,000 images take 56 ms: convolutions 39, additions 10, ReLU 5. A convolution "
        "of 16 channels reaches 12 TFLOP/s, one of 64 channels 37, and a large matrix product 52. Copying the "
        "network and folding its batch norms take 33 ms more on the CPU. These do not help: channels last (151 ms "
        "for the passes), cuDNN's search for the fastest algorithm (56 ms), and `torch.compile` (max-autotune, 53 "
        "ms, after 33 s of compilation). With tf32, which is less exact, the passes take 34 ms.",
    ],
    "sweep": [
        "",
        "The percentage is the median over the jobs of the time beyond the job's own evaluation. The rows are the "
        "medians of both times; they differ by more if the speed of the machine changes between jobs.",
    ],
}
MIRRORED = "reconstruction.distill_mirrored=true"
FAST = ("trainer=fast", "optimizer=nesterov", "scheduler=onecycle")  # overrides for networks that are trained here
STEPS = PROJECT_ROOT / "bench" / "steps.md"  # prose of the page, with measured tables
PACKAGES = ("torch", "torchvision", "hydra-core", "mlflow", "aimet-torch")


def preset(method: str, **changes: Any) -> QuantConfig:
    """The method of a file in conf/quant, with some keys changed. `method` may change keys itself, as in
    "best reconstruction.steps=100"."""
    name, *words = method.split()
    config = compose(f"quant={name}", *(f"quant.{word}" for word in words)).quant
    config = dataclasses.replace(config, **changes)
    check_method(config)
    return config


def on_images(root: str, cache: str | None, checkpoint: str = "auto", *words: str) -> Config:
    """A configuration that reads the images of an archive or a folder. `words` are further overrides."""
    config = compose("data=image_folder", *words)
    config.data.root, config.cache_dir, config.checkpoint = root, cache, checkpoint
    return config


def selected(names: Iterable[str], only: Collection[str]) -> list[str]:
    """Those of `names` that `only` has, or all if it has none of them."""
    names = list(names)
    return [name for name in names if name in only] or names


def take_turns(cases: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """The seconds of every case in each of `rounds` rounds, after one warm-up round.

    Every second round runs backwards, so that no case always follows the same one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name in list(cases) if number % 2 else list(cases)[::-1]:
            _wait(device)
            started = time.perf_counter()
            cases[name]()
            _wait(device)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def rows_of(seconds: dict[str, list[float]], baseline: str, per: float = 1.0) -> list[dict[str, Any]]:
    """One row per case: median, lowest, highest (seconds / `per`), and the time relative to the baseline's median."""
    reference = statistics.median(seconds[baseline])
    return [
        {
            "case": name,
            "seconds": statistics.median(times) / per,
            "lowest": min(times) / per,
            "highest": max(times) / per,
            "ratio": statistics.median(times) / reference,
        }
        for name, times in seconds.items()
    ]


def machine_rates(device: torch.device) -> dict[str, float]:
    """The float32 rates of this machine: FLOP/s, the higher of a large matrix product and a wide convolution, and the
    bytes/s of a large copy."""
    cuda = device.type == "cuda"
    size, batch = (8192, 4096) if cuda else (2048, 64)
    a, b, c = (torch.randn(size, size, device=device) for _ in range(3))
    layer = torch.nn.Conv2d(64, 64, 3, padding=1).to(device).to(memory_format=torch.channels_last)
    x = torch.randn(batch, 64, 16, 16, device=device).to(memory_format=torch.channels_last)
    source, target = (torch.zeros(2**28 if cuda else 2**25, device=device) for _ in range(2))
    with torch.inference_mode():
        seconds = take_turns(
            {"product": lambda: torch.mm(a, b, out=c), "layer": lambda: layer(x), "copy": lambda: target.copy_(source)},
            7, device,
        )  # fmt: skip
    flops = {"product": 2 * size**3, "layer": 2 * 64 * 64 * 9 * x[:, 0].numel()}
    return {
        "flops_per_second": max(count / min(seconds[name]) for name, count in flops.items()),
        "bytes_per_second": 2 * 4 * source.numel() / min(seconds["copy"]),
    }


def resnet20_cost(images: int) -> dict[str, float]:
    """FLOPs of one forward pass of ResNet-20 over `images` images, and the bytes of its activations, float32.

    An image takes 40.8 million multiply-adds. Its 188,000 convolution outputs are each written and read once if no
    cache holds them.
    """
    return {"flops": 2 * 40.8e6 * images, "bytes": 2 * 4 * 188e3 * images}


def floor_seconds(cost: dict[str, float], rates: dict[str, float]) -> float:
    """A lower bound for any implementation: the larger of compute and memory time at the rates of this machine."""
    return max(cost["flops"] / rates["flops_per_second"], cost["bytes"] / rates["bytes_per_second"])


def save(name: str, device: torch.device, content: dict[str, Any]) -> None:
    """Write bench/results/<name>-<hardware>.json, print its table and rebuild docs/performance.md."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    about = {
        "benchmark": name,
        "command": f"python -m bench.{name} {shlex.join(sys.argv[1:])}".rstrip(),
        "date": date.today().isoformat(),
        "hardware": hardware if device.type == "cuda" else f"{hardware} ({platform.machine()}, {platform.system()})",
        "versions": {"python": platform.python_version()} | installed(PACKAGES),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    (RESULTS / f"{name}-{slug}.json").write_text(json.dumps(about | content, indent=1) + "\n")
    print(section(about | content))
    write_page()


def section(result: dict[str, Any]) -> str:
    """The part of docs/performance.md from one result file."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"`{result['command']}`, {result['date']}, {result['hardware']}, {versions}.",
        "",
        f"| case | {result['unit']} | lowest to highest | {result['ratio_of']} |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        digits = 2 if row["seconds"] >= 10 else 4
        numbers = [f"{row[key]:.{digits}f}" for key in ("seconds", "lowest", "highest")]
        lines.append(f"| {row['case']} | {numbers[0]} | {numbers[1]} to {numbers[2]} | {row['ratio']:.3f} |")
    return "\n".join([*lines, "", *(f"* {note}" for note in result.get("notes", []))]).rstrip()


def write_page() -> None:
    """Write docs/performance.md from all result files: one section per benchmark, one part per machine."""
    titles = {
        "training": "Training",
        "evaluation": "Evaluation",
        "sweep": "Sweeps",
        "reconstruction": "Learned rounding",
        "variants": "Several variants on one GPU",
        "growth": "Growth of the cost",
        "startup": "Startup",
        "scaling": "Several workers",
    }
    page = [
        "# Performance",
        "",
        "The benchmarks write this page from `bench/results/*.json`. All cases of a table alternated in one run: "
        "compare them with each other, not with those of another machine.",
    ]
    for name, title in titles.items():
        files = sorted(RESULTS.glob(f"{name}-*.json"))
        if files:
            page += ["", f"## {title}", *REMARKS.get(name, [])]
        for file in files:
            page += ["", section(json.loads(file.read_text()))]
    PAGE.write_text("\n".join([*page, "", STEPS.read_text()]))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    write_page()
    sys.stdout.write(f"{PAGE}\n")
