"""The cost of one more job in a sweep: `python -m bench.sweep --checkpoint FILE --images ARCHIVE`.

Runs real multiruns of `run.py` of several lengths, logged to a separate MLflow store. The cost of a job that evaluates
all images is the time from its start to the start of the next job, plus the time that it adds before the first job
(Hydra composes all jobs there). It is compared with the time that the job spends in evaluation. The cost of quick jobs
is the slope over whole sweeps, because their figures are still being drawn after the last job has ended. Memory is that
of the process while it runs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.harness import rows_of, save
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.runs.device import pick_device

FEW_IMAGES = "data.test_limit=500"


def main() -> None:
    """Run a short and a longer sweep over full evaluations, then a hundred quick jobs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--checkpoint", default="../shared/checkpoints/resnet20-12fca82f.th")
    parser.add_argument("--images", default="../shared/data/cifar10-jpeg.tar.gz", help="an archive of train/ and test/")
    parser.add_argument("--jobs", type=int, default=12, help="jobs of the longer sweep, on all test images")
    parser.add_argument("--many", type=int, default=100, help="number of quick jobs, on 500 test images")
    arguments = parser.parse_args()
    data = data_words(arguments.checkpoint, arguments.images)
    sweep([*data, "quant.alpha_multiplier=3.0"])  # decodes the images and warms the file caches
    short, long = (sweep([*data, multipliers(count)]) for count in (2, arguments.jobs))
    before = (long["starts"][0] - short["starts"][0]) / (arguments.jobs - 2)
    evaluations = long["evaluate_seconds"][2:-1]
    costs = [before + later - start for start, later in pairwise(long["starts"])][2:]
    evaluation = statistics.median(evaluations)
    extra = statistics.median(cost - own for cost, own in zip(costs, evaluations, strict=True))
    quick = [*data, FEW_IMAGES]
    tenth = arguments.many // 10
    few, many = (sweep([*quick, multipliers(count)]) for count in (tenth, arguments.many))
    marginal = (few["seconds"] - sweep([*quick, multipliers(1)])["seconds"]) / (tenth - 1)
    later = (many["seconds"] - few["seconds"]) / (arguments.many - tenth)
    all_images = {"a job's own evaluation, all test images": evaluations, "one more job, all test images": costs}
    few_images = {
        f"one more of the first {tenth} jobs, 500 test images": [marginal],
        f"one more of the jobs up to {arguments.many}, 500 test images": [later],
    }
    rows = [row for cases in (all_images, few_images) for row in rows_of(cases, next(iter(cases)))]
    notes = [
        f"One more job takes {100 * extra / evaluation:.0f} % ({extra:.2f} s) longer than its evaluation.",
        f"In a sweep of {arguments.many} jobs, each job after the first {tenth} takes {later / marginal:.2f} times as "
        f"long as one of the first {tenth}. Memory grew from {many['memory'][0]:.0f} MB after a tenth of the sweep to "
        f"{many['memory'][1]:.0f} MB after nine tenths.",
    ]
    content = {"unit": "seconds", "ratio_of": "relative to the row it is compared with", "rows": rows, "notes": notes}
    save("sweep", pick_device("auto"), content)


def data_words(checkpoint: str, images: str) -> list[str]:
    """The command-line words for a checkpoint and an archive of images."""
    return [
        f"checkpoint={Path(checkpoint).absolute()}", "data=image_folder", "data.resize=32",
        f"data.root={Path(images).absolute()}",
    ]  # fmt: skip


def sweep(overrides: list[str]) -> dict[str, Any]:
    """Run one multirun. Returns its seconds including startup, the start times and evaluation times of its jobs, and
    its early and late memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "run.py", "-m", *overrides, f"tracking.uri=sqlite:///{folder}/mlflow.db",
            f"hydra.sweep.dir={folder}/sweep", "quant.bits=4",
        ]  # fmt: skip
        environment = os.environ | {"COLUMNS": "200"}
        started, clock = time.perf_counter(), time.time()
        process = subprocess.Popen(
            command, cwd=PROJECT_ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        memory = []
        while process.poll() is None:
            memory.append(_memory(process.pid))
            time.sleep(0.2)
        seconds = time.perf_counter() - started
        if process.returncode:
            raise SystemExit(f"failed: {' '.join(command)}")
        jobs = sorted(Path(folder).glob("sweep/[0-9]*"), key=lambda job: int(job.name))
        rows = [json.loads((job / "results.json").read_text())["results"][0] for job in jobs]
        running = memory[len(memory) // 10 :] or [0.0]  # without the startup
        some = max(1, len(running) // 10)
        return {
            "seconds": seconds,
            "starts": [(job / "hydra" / "config.yaml").stat().st_mtime - clock for job in jobs],
            "evaluate_seconds": [row["evaluate_seconds"] for row in rows],
            "memory": (max(running[:some]), max(running[-2 * some : -some] or running)),  # before the report at the end
        }


def _memory(process: int) -> float:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0.0)


def multipliers(count: int) -> str:
    """The command-line word for `count` jobs."""
    return "quant.alpha_multiplier=" + ",".join(f"{1 + 4 * number / count:.4f}" for number in range(count))


if __name__ == "__main__":
    main()
