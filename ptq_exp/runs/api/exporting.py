"""`ptq_exp.export`: files of a quantized network for other programs, verified."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ptq_exp.base.console import log
from ptq_exp.base.errors import UserError
from ptq_exp.evaluation.accuracy import evaluate
from ptq_exp.export import check_formats
from ptq_exp.export.formats import Subject
from ptq_exp.export.verification import TestSet, export_all
from ptq_exp.results.exports import ExportResult
from ptq_exp.runs.api.calling import as_given, as_labels, check_images
from ptq_exp.runs.api.quantizing import QuantizedModel

SUFFIXES = (".onnx", ".safetensors", ".pt2", ".h")


def export(
    quantized: QuantizedModel,
    path: str | Path,
    formats: str | Sequence[str],
    images: Tensor,
    labels: Tensor | Sequence[int],
) -> list[ExportResult]:
    """Write and verify the files. See `ptq_exp.export`."""
    if not isinstance(quantized, QuantizedModel):
        raise UserError(f"Expected what ptq_exp.quantize returned, not a {type(quantized).__name__}.")
    names = [formats] if isinstance(formats, str) else list(formats)
    check_formats(names)
    check_images(images)
    images = images.cpu()
    truth = as_labels(labels, images).cpu()
    stem = Path(path)
    stem = stem.with_suffix("") if stem.suffix in SUFFIXES else stem
    stem.parent.mkdir(parents=True, exist_ok=True)
    if "packed" in names:
        stem.with_name(f"{stem.name}.safetensors").unlink(missing_ok=True)  # an existing one would be kept
    instance = quantized.float_network if quantized.about["model"].get("instance") else None
    subject = Subject.of(quantized.network, quantized.image, quantized.about, instance)
    simulated = evaluate(subject.network, images, truth, as_given)
    files = list(export_all(names, subject, stem, TestSet(images, truth, simulated.predictions, as_given)))
    if failed := [f"{file.place}: {file.note}" for file in files if file.failed]:
        raise UserError(f"Not every export does what was simulated. {'; '.join(failed)}.")
    for file in files:
        if file.agreement is None:
            log.warning("%s", file)
    return files
