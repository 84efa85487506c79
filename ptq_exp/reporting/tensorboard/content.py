"""The content of the event files of a job or a sweep."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_exp.reporting.notes import job_note, sweep_note
from ptq_exp.reporting.tables.delimited import settings
from ptq_exp.results.records import BitWidthResult, JobRecord, SweepRecord
from ptq_exp.results.series import NO_SETTINGS, Row, Rows, as_series, rows_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CURVE = "curve"  # the first word of the name of a curve's run
# Of one bit width. The step is `quant.bits`, so that the lines of several runs are accuracy against bits.
SHOWN = ("top1", "top1_drop", "top5", "agreement", "loss", "bits_mean", "size_bytes")
BY_BITS, TRAINING, HPARAMS, FIGURES = "by_bits", "training", "hparams", "figures"  # the groups of tags
COMPARED = ("top1", "top1_drop", "bits_mean", "size_bytes")  # in the table of hyperparameters
ALWAYS = ("quant.name", "quant.act_bits", "data.used", "model.used", "seed")


def write_job(record: JobRecord, folder: Path) -> None:
    """Write a job: its metrics by bits, its training by epochs, its figures and its table.

    The table of hyperparameters has one line per bit width. TensorBoard allows one per run, so a job with several bit
    widths has a run for each in a subfolder.
    """
    ended = record.ended / 1000
    with _writer(folder) as writer:
        for result in record.results:
            _write_metrics(writer, result, ended)
        for epoch, metrics in enumerate(record.history, start=1):
            for name, value in metrics.items():
                writer.add_scalar(f"{TRAINING}/{name}", value, epoch, ended)
        _write_page(writer, job_note(record), record.artifacts, ended)
        if len(record.results) == 1:
            _write_hyperparameters(writer, record, record.results[0])
    for result in record.results if len(record.results) > 1 else ():
        with _writer(folder / f"w{result.bits}") as writer:
            _write_hyperparameters(writer, record, result)


def write_sweep(record: SweepRecord, folder: Path) -> None:
    """Write a sweep's table and figures."""
    with _writer(folder) as writer:
        _write_page(writer, sweep_note(record), record.figures, None)


def curves(record: SweepRecord) -> Rows:
    """The lines of each series with several bit widths, means over seeds. A job with several bit widths has its own."""
    if any(len(job.results) > 1 for job in record.jobs):
        return {}
    return {label: rows for label, rows in rows_of(as_series(record.jobs)).items() if len(rows) > 1}


def write_curve(rows: list[Row], folder: Path) -> None:
    """Write a series over its bit widths."""
    with _writer(folder) as writer:
        for row in rows:
            _write_metrics(writer, row.mean, None)


def hyperparameters(record: JobRecord, result: BitWidthResult) -> dict[str, bool | float | str]:
    """The settings that were typed, and what identifies method, network and data. The table gets no others."""
    typed = [key for key in settings(record.overrides) if key.partition(".")[0] not in NO_SETTINGS]
    found = {key: record.params[key] for key in dict.fromkeys([*ALWAYS, *typed]) if key in record.params}
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in (found | {"quant.bits": result.bits}).items() if value is not None
    }  # fmt: skip


@contextlib.contextmanager
def _writer(folder: Path) -> Iterator["SummaryWriter"]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    try:
        yield writer
    finally:
        writer.close()


def _write_metrics(writer: "SummaryWriter", result: BitWidthResult, when: float | None) -> None:
    values = result.metrics()
    exported = {name for export in result.exports for name in export.metrics()}
    for name in (name for name in values if name in SHOWN or name in exported):
        writer.add_scalar(f"{BY_BITS}/{name}", values[name], result.bits, when)


def _write_hyperparameters(writer: "SummaryWriter", record: JobRecord, result: BitWidthResult) -> None:
    from torch.utils.tensorboard.summary import hparams

    metrics = {f"{HPARAMS}/{name}": float(getattr(result, name)) for name in COMPARED}
    for summary in hparams(hyperparameters(record, result), metrics):
        writer._get_file_writer().add_summary(summary)
    for name, value in metrics.items():
        writer.add_scalar(name, value, 0, record.ended / 1000)


def _write_page(writer: "SummaryWriter", note: str, figures: Path, when: float | None) -> None:
    """Write the table as text and the figures in a folder."""
    writer.add_text("table", note, 0, when)
    for path in sorted(figures.glob("*.png")):
        writer._get_file_writer().add_summary(_image(f"{FIGURES}/{path.stem}", path.read_bytes()), 0, when)


def _image(tag: str, png: bytes) -> Any:
    """A PNG file as it is. `add_image` would decode and encode it again."""
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(io.BytesIO(png)) as picture:
        width, height = picture.size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=image)])
