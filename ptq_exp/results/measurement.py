"""What is measured at one bit width, and its files: a row of metrics, tables, figures and the quantized network."""

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from ptq_exp.base.text import write_text
from ptq_exp.config import Config
from ptq_exp.data.dataset import Dataset
from ptq_exp.evaluation.accuracy import Evaluation, drop_interval
from ptq_exp.export.network_file import save_quantized
from ptq_exp.quantization.diagnosis import diagnose
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.quantize import Quantized
from ptq_exp.quantization.report import FLOAT_BYTES, Report
from ptq_exp.reporting import figures
from ptq_exp.results.series import NOT_DISTINGUISHABLE, Row, verdict, width
from ptq_exp.runs.float_model import FloatModel

NOT_METRICS = {"bits", "act_bits", "diagnosis", "chance"}


def make_row(
    bits: int,
    quant: QuantConfig,
    float_model: FloatModel,
    baseline: Evaluation,
    result: Evaluation,
    dataset: Dataset,
    report: Report,
    quantize_seconds: float,
) -> Row:
    """Everything measured at one bit width, under the names of the metrics that are logged (percent, bytes, s)."""
    low, high = result.interval()
    float_low, float_high = baseline.interval()
    drop_low, drop_high = drop_interval(baseline, result, dataset.test_labels)
    state = float_model.model.state_dict()
    parameters = sum(value.numel() for name, value in state.items() if not name.endswith("num_batches_tracked"))
    return {
        "bits": bits,
        "act_bits": quant.act_bits,
        "top1": result.top1,
        "top1_ci_low": low,
        "top1_ci_high": high,
        "chance": 100 / len(dataset.classes),
        "top1_float": baseline.top1,
        "top1_float_ci_low": float_low,
        "top1_float_ci_high": float_high,
        "top1_drop": baseline.top1 - result.top1,
        "top1_drop_ci_low": drop_low,
        "top1_drop_ci_high": drop_high,
        "top5": result.top5,
        "agreement": result.agreement(baseline),
        "loss": result.loss,
        "loss_float": baseline.loss,
        "bits_mean": report.bits_mean,
        "size_bytes": report.size_bytes,
        "size_bytes_float": FLOAT_BYTES * parameters,
        "quantize_seconds": quantize_seconds,
        "evaluate_seconds": result.seconds,
        "diagnosis": diagnose(report, quant, significant=drop_low > 0),
    }


def metrics(row: Row) -> dict[str, float]:
    """The numbers of a row that are measured, not chosen."""
    return {key: float(value) for key, value in row.items() if key not in NOT_METRICS}


def returned_metrics(rows: list[Row]) -> dict[str, float]:
    """What a job returns: the metrics of its one bit width, or the top-1 of each and of the float network."""
    if len(rows) == 1:
        return metrics(rows[0])
    return {f"top1_w{row['bits']}": row["top1"] for row in rows} | {"top1_float": rows[0]["top1_float"]}


def headline(row: Row, method: str) -> str:
    """The line that a job prints for one bit width."""
    activations = "" if row["act_bits"] is None else f", {row['act_bits']}-bit activations"
    told = f", {NOT_DISTINGUISHABLE}" if verdict(row) == NOT_DISTINGUISHABLE else ""
    return (
        f"{method}, {width(row)}{activations}: top-1 {row['top1']:.2f} % "
        f"(float {row['top1_float']:.2f} %{told}), {row['agreement']:.2f} % of the predictions unchanged"
    )


def save_artifacts(
    folder: Path,
    row: Row,
    config: Config,
    float_model: FloatModel,
    dataset: Dataset,
    quantized: Quantized,
    baseline: Evaluation,
    result: Evaluation,
) -> None:
    """The per-layer table, the quantized weights and the figures of one bit width."""
    folder.mkdir(parents=True, exist_ok=True)
    suffix = f"w{row['bits']}"
    table = [dataclasses.asdict(layer) for layer in quantized.report.layers]
    _write_csv(folder / f"layers_{suffix}.csv", table)
    write_text(folder / f"layers_{suffix}.json", json.dumps([_without_infinities(line) for line in table], indent=1))
    about = {
        "model": float_model.options,
        "classes": list(dataset.classes),
        "mean": float_model.config.data.mean,
        "std": float_model.config.data.std,
        "float_digest": float_model.digest,
        "quant": dataclasses.asdict(config.quant) | {"bits": row["bits"]},
        "top1": row["top1"],
    }
    save_quantized(quantized.network, folder / f"quantized_{suffix}.safetensors", about)
    if quantized.report.sensitivity is not None:
        write_text(folder / f"sensitivities_{suffix}.json", json.dumps(quantized.report.sensitivity, indent=1))
    figures.draw_bit_width(folder, row, config, dataset, quantized, baseline, result, table)


def save_sensitivity(folder: Path, bits: int, rows: list[Row], baseline: Evaluation) -> None:
    """The table and the figure of accuracy with one layer quantized at a time."""
    _write_csv(folder / f"one_layer_w{bits}.csv", rows)
    figures.draw_sensitivities(folder, bits, rows, baseline)


def _write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _without_infinities(line: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: the SQNR of a layer that lost nothing is null there."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
