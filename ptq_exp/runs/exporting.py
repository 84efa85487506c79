"""The files of a quantized network: the packed one that every job keeps, and those of `export`, each verified."""

import csv
import dataclasses
import logging
from pathlib import Path
from typing import Any

from ptq_exp.base.console import log, progress
from ptq_exp.config import Config
from ptq_exp.evaluation.accuracy import Evaluation
from ptq_exp.evaluation.integer_check import IntegerCheck
from ptq_exp.evaluation.integers import check_integers, fully_quantized
from ptq_exp.export.formats import Subject
from ptq_exp.export.network_file import save_quantized
from ptq_exp.export.verification import TestSet, export_all
from ptq_exp.networks import custom
from ptq_exp.networks.graph.calling import needs_contiguous_images
from ptq_exp.quantization.quantize import Quantized
from ptq_exp.results.exports import ExportResult
from ptq_exp.results.records import BitWidthResult
from ptq_exp.runs.shared import Shared


def export_network(
    result: BitWidthResult, config: Config, shared: Shared, quantized: Quantized, evaluation: Evaluation, folder: Path
) -> BitWidthResult:
    """Write the network to `folder`, and return `result` with what was found out about the files."""
    about, name = description(result.bits, result.top1, config, shared), f"quantized_w{result.bits}"
    save_quantized(quantized.network, folder / f"{name}.safetensors", about)
    if not config.formats:
        return result
    dataset, normalize = shared.dataset, shared.float_model.normalize.to("cpu")
    images = dataset.test_images.cpu()
    tests = TestSet(images, dataset.test_labels.cpu(), evaluation.predictions, normalize)
    image = normalize(images[:1])[0]
    exports, integers = exports_of(Subject.of(quantized.network, image, about), config.formats, folder / name, tests)
    return dataclasses.replace(result, exports=exports, integers=integers)


def exports_of(
    subject: Subject, formats: list[str], path: Path, tests: TestSet
) -> tuple[tuple[ExportResult, ...], IntegerCheck | None]:
    """Export and verify `subject`, and compare it with its integer reference if all its activations are quantized."""
    with progress(f"Exporting {path.name}", len(formats)) as advance:
        exports = export_all(formats, subject, path, tests, advance)
    for export in exports:
        log.log(logging.ERROR if export.failed else logging.INFO, "%s", export)
    if not fully_quantized(subject.network, subject.about["quant"]["act_coverage"]):
        return exports, None
    integers = check_integers(subject.network, tests.images, tests.normalize)
    write_integers(path.parent / f"integers_{path.name.rpartition('_')[2]}.csv", integers)
    log.info("%s", integers.sentence())
    return exports, integers


def description(bits: int, top1: float, config: Config, shared: Shared) -> dict[str, Any]:
    """The metadata that `ptq_exp.load` needs to rebuild a network."""
    float_model = shared.float_model
    return {
        "model": custom.as_stored(float_model.options),
        "contiguous": needs_contiguous_images(float_model.model),
        "classes": list(shared.dataset.classes),
        "mean": float_model.config.data.mean,
        "std": float_model.config.data.std,
        "float_digest": float_model.digest,
        "quant": dataclasses.asdict(config.quant) | {"bits": bits},
        "top1": top1,
    }


def write_integers(path: Path, found: IntegerCheck) -> None:
    """Write the table of the integer reference, one line per layer or operand."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [dataclasses.asdict(row) for row in found.rows]
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
