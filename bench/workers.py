"""Independent measurements, distributed over processes. Each result is stored as soon as it is available."""

import json
import multiprocessing
import queue as queues
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from ptq_exp.runs.device import hardware, pick_device

# (setup arguments) -> a function that measures one task and returns its line
Setup = Callable[[Any], Callable[[Any], dict[str, Any]]]


def share_out(tasks: list[Any], workers: int, setup: Setup, arguments: Any, results: Path, minutes: float) -> None:
    """Measure every task in one of `workers` processes, each of which calls `setup(arguments)` once.

    One line (JSON) per task is appended to `results`. No new task is started after `minutes` minutes.
    """
    deadline = time.time() + 60 * minutes
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    for task in tasks:
        queue.put(task)
    target, count = _work, min(workers, len(tasks))
    processes = [
        context.Process(target=target, args=(queue, setup, arguments, results, deadline, count)) for _ in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("A worker failed. The measurements of the others are kept.")


def _work(queue: Any, setup: Setup, arguments: Any, results: Path, deadline: float, workers: int) -> None:
    device = pick_device("auto")
    # More threads than cores wait for each other in loops, and everything takes up to a hundred times as long.
    torch.set_num_threads(2 if device.type == "cuda" else max(1, torch.get_num_threads() // workers))
    measure = setup(arguments)
    while time.time() < deadline:
        try:
            task = queue.get(timeout=2)
        except queues.Empty:
            return
        line = measure(task)
        line |= {"device": hardware(device), "torch": torch.__version__, "date": date.today().isoformat()}
        add_line(line, results)
        print(
            ", ".join(f"{key} {_short(value)}" for key, value in line.items() if not isinstance(value, dict)),
            flush=True,
        )


def _short(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def add_line(line: dict[str, Any], path: Path) -> None:
    """Append a measurement to the file at `path`."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The measurements so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
