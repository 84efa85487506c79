"""The measurements: every tool writes its files, then every runtime runs them, each in a process of its own."""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from bench.export_peers import SIMULATION, WIDTHS, Runner
from bench.export_peers.running import RUNTIMES
from bench.export_peers.writers import subject_of, write
from bench.peers import networks
from bench.peers.networks import calibration_images
from bench.workers import add_line
from ptq_exp.export.formats import Subject, first_line, runner
from ptq_exp.export.onnx import Onnx
from ptq_exp.export.program import Program
from ptq_exp.quantization.modules import copy_network
from ptq_exp.quantization.steps.fold_batch_norm import fold_batch_norm
from ptq_exp.runs.fitting import FloatModel

SEED, BATCH = 0, 100
ROUNDS, SECONDS = 11, 0.05  # interleaved rounds, and how long each case runs in one
SIZES = (1, 64)  # images at a time

Task = tuple[str, str]  # tool, widths
Line = dict[str, Any]


def load(arguments: argparse.Namespace) -> FloatModel:
    """The float network, on the CPU, with its test images."""
    found = networks.load(arguments.network, arguments, torch.device("cpu"))
    return dataclasses.replace(found, dataset=found.dataset.limited(None, arguments.limit))


def write_files(tasks: list[Task], arguments: argparse.Namespace, notes: Path) -> None:
    """Let a tool write its files. One process per tool, because the tools patch torch."""
    measure = writer(arguments)
    for task in tasks:
        try:
            line = measure(task)
        except Exception as error:  # of a tool, whatever it is, is a result: the tool cannot do this
            line = {"task": list(task), "error": f"{type(error).__name__}: {first_line(error)}"}
        add_line(line, notes)
        print(", ".join(f"{key} {line[key]}" for key in ("task", "seconds", "error") if key in line), flush=True)


def writer(arguments: argparse.Namespace) -> Callable[[Task], Line]:
    """The function that lets a tool write its files at some widths."""
    torch.set_num_threads(1)
    found = load(arguments)
    images = calibration_images(found, SEED)

    def measure(task: Task) -> Line:
        tool, width = task
        folder = folder_of(arguments.folder, tool, width)
        folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        quantized = write(tool, found, images, WIDTHS[width], folder)
        line: Line = {"task": list(task), "seconds": time.perf_counter() - started, "settings": quantized.settings}
        line["files"] = [dataclasses.asdict(file) for file in quantized.files]
        if quantized.simulation is not None:
            simulation = runner(quantized.simulation)
            predictions = predict(simulation, found)
            torch.save(predictions, folder / "predictions.pt")
            reference = runner(float_subject(found, images).network)
            line[SIMULATION] = {
                "top1": percent(predictions, found.dataset.test_labels),
                "speeds": speeds({"float": reference, "simulation": simulation}, found)["simulation"],
            }
        return line

    return measure


def write_references(arguments: argparse.Namespace) -> None:
    """Write the float network, with batch norms folded, for every runtime."""
    found = load(arguments)
    subject = float_subject(found, found.normalize(found.dataset.test_images[:1]))
    for kind in (Onnx, Program):
        kind().write(subject, arguments.folder, "float")


def run_in(key: str, arguments: argparse.Namespace, lines: list[Line], results: Path) -> None:
    """Run every file of a runtime: top-1, agreement with the tool's simulation, speed. Writes a list (JSON)."""
    torch.set_num_threads(1)
    found, runtime = load(arguments), RUNTIMES[key]
    cases = {"float": reference(key, found, arguments.folder)}
    runs: list[Line] = []
    for (tool, width), file in [(line["task"], file) for line in lines for file in line["files"]]:
        if key not in file["runtimes"]:
            continue
        folder = folder_of(arguments.folder, tool, width)
        run: Line = {"task": [tool, width], "format": file["format"], "runtime": key}
        runs.append(run)
        try:
            case = runtime.load(folder / file["paths"][0], WIDTHS[width][1] is None)
            predictions = predict(case, found)
        except Exception as error:  # every runtime has its own
            run["error"] = reason(error)
            continue
        run["top1"] = percent(predictions, found.dataset.test_labels)
        if (folder / "predictions.pt").exists():
            run["agreement"] = percent(predictions, torch.load(folder / "predictions.pt"))
        cases[str(len(runs) - 1)] = case
    for place, ratios in speeds(cases, found).items():
        runs[int(place)]["speeds"] = ratios
    results.write_text(json.dumps(runs))
    print(f"{runtime.label}: {len(cases) - 1} of {len(runs)} files run", flush=True)


def reason(error: Exception) -> str:
    """The last line of an error that says something. The other lines of OpenVINO say where it was raised."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '", "While validating"))]
    return (said or [type(error).__name__])[-1].rpartition("failed:")[2].removeprefix("Fatal error: ")


def reference(key: str, found: FloatModel, folder: Path) -> Runner:
    """The float network in a runtime."""
    runtime = RUNTIMES[key]
    if runtime.reference:
        return runtime.load(folder / runtime.reference, True)
    return runner(float_subject(found, found.normalize(found.dataset.test_images[:1])).network)


def float_subject(found: FloatModel, images: Tensor) -> Subject:
    """The float network with folded batch norms."""
    network = copy_network(found.model)
    fold_batch_norm(network)
    return subject_of(found, network, images)


def folder_of(folder: Path, tool: str, width: str) -> Path:
    """The folder of a task's files."""
    return folder / f"{tool}-{width}"


def size_of(folder: Path, paths: list[str]) -> int:
    """The bytes of all files in `paths`, with the files of weights that an ONNX file refers to."""
    all_files = {folder / path for path in paths}
    for path in paths:
        if path.endswith(".onnx"):
            constants = onnx.load(folder / path, load_external_data=False).graph.initializer
            places = (entry.value for tensor in constants for entry in tensor.external_data if entry.key == "location")
            all_files |= {folder / place for place in places}
    return sum(file.stat().st_size for file in all_files)


def predict(run: Runner, found: FloatModel) -> Tensor:
    """The predicted classes of all test images (N,)."""
    batches = found.dataset.test_images.split(BATCH)
    return torch.cat([run(found.normalize(batch).contiguous()).argmax(1) for batch in batches])


def percent(predictions: Tensor, wanted: Tensor) -> float:
    """How many percent are equal."""
    return 100 * (predictions == wanted).double().mean().item()


def speeds(cases: dict[str, Runner], found: FloatModel) -> dict[str, dict[str, float]]:
    """The speed of every case but "float" relative to it, with 1 and 64 images at a time.

    The cases take turns. A ratio is the median over rounds of the ratio within a round.
    """
    found_ratios: dict[str, dict[str, float]] = {name: {} for name in cases if name != "float"}
    for size in SIZES if found_ratios else ():
        images = found.normalize(found.dataset.test_images[:size]).contiguous()
        rounds = [
            {name: seconds_of(run, images) for name, run in (cases if number % 2 else reversed_(cases)).items()}
            for number in range(ROUNDS)
        ]
        for name, ratios in found_ratios.items():
            ratios[str(size)] = statistics.median(times["float"] / times[name] for times in rounds)
    return found_ratios


def reversed_(cases: dict[str, Runner]) -> dict[str, Runner]:
    """The cases in reverse order."""
    return dict(reversed(cases.items()))


def seconds_of(run: Runner, images: Tensor) -> float:
    """The median time of a call, of as many as fit `SECONDS`, after one that is not counted."""
    run(images)
    times: list[float] = []
    while not times or sum(times) < SECONDS:
        started = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - started)
    return statistics.median(times)
