"""Startup: `python -m bench.startup`. Measures the time to --help, --cfg job, the first line of a job, and a report.

The report is that of a sweep of two jobs, from its MLflow store and from its folder.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.harness import rows_of, save
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.runs.device import pick_device

CASES = {
    "import torch": ["-c", "import torch"],
    "import hydra": ["-c", "import hydra"],
    "import mlflow with its SQL store": ["-c", "import mlflow.store.tracking.sqlalchemy_store"],
    "--help": ["run.py", "--help"],
    "--cfg job": ["run.py", "--cfg", "job"],
    "report from MLflow": ["-m", "ptq_exp.report", "--uri", "{store}", "--output", "{folder}/report.html"],
    "report from the folder": ["-m", "ptq_exp.report", "{sweep}", "--output", "{folder}/report.html"],
    "comparison of two folders": [
        "-m", "ptq_exp.report", "--compare", "{sweep}/0", "{sweep}/1", "--output", "{folder}/report.html",
    ],
}  # fmt: skip
JOB = ["run.py", "experiment=debug", "tracking=none", f"hydra.run.dir={tempfile.gettempdir()}/ptq_exp_bench_startup"]


def main() -> None:
    """Run every command in turn, several times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments.rounds, prepared(Path(folder)))


def prepared(folder: Path) -> dict[str, list[str]]:
    """Run the sweep that is reported. Returns the commands with its store and folder."""
    names = {"store": f"sqlite:///{folder}/mlflow.db", "sweep": f"{folder}/sweep", "folder": str(folder)}
    words = [
        "experiment=debug",
        "quant.bits=4,8",
        f"tracking.uri={names['store']}",
        f"hydra.sweep.dir={names['sweep']}",
    ]
    whole(["run.py", "-m", *words])
    return {case: [word.format(**names) for word in command] for case, command in CASES.items()}


def measure(rounds: int, commands: dict[str, list[str]]) -> None:
    """Time the commands and write the page."""
    wall: dict[str, list[float]] = {name: [] for name in [*commands, "the first line of a job"]}
    cpu: dict[str, list[float]] = {name: [] for name in wall}
    for number in range(rounds + 1):
        for name in wall:
            seconds, work = first_line(JOB) if name not in commands else whole(commands[name])
            if number:  # the first round fills the file caches
                wall[name].append(seconds)
                cpu[name].append(work)
    torch_seconds = statistics.median(wall["import torch"])
    rows = rows_of(wall, "import torch")
    processor = ", ".join(f"{name} {statistics.median(times):.2f} s" for name, times in cpu.items())
    job = statistics.median(wall["the first line of a job"])
    notes = [
        f"Processor time of all threads: {processor}.",
        f"Time to the first line of a job minus the time to import torch: {job - torch_seconds:.2f} s.",
    ]
    content = {"unit": "seconds", "ratio_of": "relative to importing torch", "rows": rows, "notes": notes}
    save("startup", pick_device("auto"), content)


def whole(command: list[str]) -> tuple[float, float]:
    """The wall and processor seconds of a Python command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=PROJECT_ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def first_line(command: list[str]) -> tuple[float, float]:
    """The wall and processor seconds until the first line of a command, which is then killed."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)
    seconds = time.perf_counter() - started
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process.kill()
    process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
