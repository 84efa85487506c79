"""Every file that is exported is loaded by its own runtime, run on the test images, and timed."""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor

from ptq_exp.base.errors import UserError
from ptq_exp.data.loader import Normalize
from ptq_exp.export import FORMATS
from ptq_exp.export.formats import Format, NotInstalled, Runner, Subject, Written, first_line, quantizes_activations
from ptq_exp.results.exports import BATCHES, ExportResult

# Percent of the test images on which a file must predict what the simulation predicts. Weights alone are decoded to the
# same numbers. Quantized activations may land on the next level if a sum is computed in another order.
WEIGHTS_AGREE, ACTIVATIONS_AGREE = 99.9, 98.0
BATCH = 64  # images at a time
COMPARED = 64  # images whose logits are compared
SECONDS = 1.0  # for each measurement of the speed
ROUNDS = 15


@dataclass(frozen=True)
class TestSet:
    """Test images (N, C, H, W), which `normalize` turns into the input of the network, their labels (N,), and the
    predictions (N,) of the simulation, on the CPU."""

    __test__ = False  # not a test

    images: Tensor
    labels: Tensor
    predictions: Tensor
    normalize: Normalize

    def batches(self) -> list[Tensor]:
        """The images in batches."""
        return list(self.images.split(BATCH))


def export_all(
    formats: list[str], subject: Subject, path: Path, tests: TestSet, advance: Callable[[], object] = lambda: None
) -> tuple[ExportResult, ...]:
    """Write `subject` in every format to files whose names begin with that of `path`, and verify each of them.

    `advance` is called after each format. A format that fails does not keep the others from being written.
    """
    results: list[ExportResult] = []
    for key in (key for key in FORMATS if key in formats):
        results += _export(key, subject, path, tests)
        advance()
    return tuple(results)


def _export(key: str, subject: Subject, path: Path, tests: TestSet) -> list[ExportResult]:
    writer: Format = resolve_name(FORMATS[key])()
    try:
        written = writer.write(subject, path.parent, path.name)
    except NotInstalled as error:
        return [ExportResult(key, key, "", "", note=str(error))]
    except UserError as error:
        return [ExportResult(key, key, "", "", note=str(error), failed=True)]
    with tempfile.TemporaryDirectory() as scratch:
        compared = writer.write(subject.unquantized(), Path(scratch), "float")
        pairs = zip(written, compared, strict=True)
        return [_verified(key, file, reference, subject, tests) for file, reference in pairs]


def _verified(key: str, file: Written, reference: Written, subject: Subject, tests: TestSet) -> ExportResult:
    result = ExportResult(key, file.metric, file.runtime, file.path.name, file.path.stat().st_size)
    try:
        run, run_float = file.load(file.path), reference.load(reference.path)
    except NotInstalled as error:
        return dataclasses.replace(result, note=str(error))
    except Exception as error:  # every runtime has its own
        return dataclasses.replace(result, note=f"does not load: {first_line(error)}", failed=True)
    try:
        predictions = torch.cat([run(tests.normalize(batch)).argmax(1) for batch in tests.batches()])
    except Exception as error:  # every runtime has its own
        return dataclasses.replace(result, note=f"does not run: {first_line(error)}", failed=True)
    agreement = 100 * (predictions == tests.predictions).float().mean().item()
    top1 = 100 * (predictions == tests.labels).float().mean().item()
    first = tests.normalize(tests.images[:COMPARED])
    with torch.inference_mode():
        difference = (run(first) - subject.network(first)).abs().max().item()
    speeds = _both_speeds([run, run_float], tests) if file.timed else {}
    least = ACTIVATIONS_AGREE if quantizes_activations(subject.network) else WEIGHTS_AGREE
    note = (
        "" if agreement >= least else f"agrees on {agreement:.2f} % of the test images, of at least {least} % required"
    )
    return dataclasses.replace(
        result, agreement=agreement, top1=top1, largest_difference=difference, note=note, failed=bool(note),
        **speeds,
    )  # fmt: skip


def _both_speeds(runners: list[Runner], tests: TestSet) -> dict[str, Any]:
    """The speeds of a file and of the float network, by the names of the fields of `ExportResult`."""
    found: dict[str, Any] = {}
    for size in BATCHES:
        speeds = _speeds(runners, tests.normalize(_repeated(tests.images, size)))
        found |= {f"speed_{size}": speeds[0], f"float_speed_{size}": speeds[1]}
    return found


def _repeated(images: Tensor, count: int) -> Tensor:
    return images.repeat(-(-count // len(images)), 1, 1, 1)[:count]


def _speeds(runners: list[Runner], images: Tensor) -> list[float]:
    """Images per second of every runner, measured in turns, so that another load on the machine meets all of them."""
    seconds: list[list[float]] = [[] for _ in runners]
    deadline = time.perf_counter() + SECONDS * len(runners)
    for number in range(ROUNDS + 1):
        for run, times in zip(runners, seconds, strict=True):
            started = time.perf_counter()
            run(images)
            if number:  # the first call allocates
                times.append(time.perf_counter() - started)
        if number and time.perf_counter() > deadline:
            break
    return [len(images) / statistics.median(times) for times in seconds]
