"""What a job leaves behind: rows of metrics, tables, figures and the quantized network."""

import csv
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from ptq_exp import plots
from ptq_exp.background import draw, later
from ptq_exp.checkpoints import FloatModel
from ptq_exp.config import Config, digest, flatten
from ptq_exp.console import log
from ptq_exp.data.dataset import Dataset
from ptq_exp.errors import UserError
from ptq_exp.evaluation import Evaluation, drop_interval
from ptq_exp.jobs import SWEEP_VARIABLE, write_record
from ptq_exp.quantization.allocation import pareto
from ptq_exp.quantization.apply import prepare
from ptq_exp.quantization.diagnosis import diagnose
from ptq_exp.quantization.files import save_quantized
from ptq_exp.quantization.report import FLOAT_BYTES, Report
from ptq_exp.quantization.rounding import target_layers
from ptq_exp.quantization.spec import QuantConfig
from ptq_exp.summary import Row, markdown_table
from ptq_exp.tracking import Run, address, without_password
from ptq_exp.tracking.upload import upload

NOT_METRICS = {"bits", "act_bits", "diagnosis"}


def make_row(
    bits: int,
    quant: QuantConfig,
    float_model: FloatModel,
    baseline: Evaluation,
    result: Evaluation,
    labels: Tensor,
    report: Report,
    quantize_seconds: float,
) -> Row:
    """Everything measured at one bit width, under the names of the metrics that are logged (percent, bytes, s)."""
    low, high = result.interval()
    float_low, float_high = baseline.interval()
    drop_low, drop_high = drop_interval(baseline, result, labels)
    state = float_model.model.state_dict()
    parameters = sum(value.numel() for name, value in state.items() if not name.endswith("num_batches_tracked"))
    return {
        "bits": bits,
        "act_bits": quant.act_bits,
        "top1": result.top1,
        "top1_ci_low": low,
        "top1_ci_high": high,
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
    return (
        f"{method}, {row['bits']} bits{activations}: top-1 {row['top1']:.2f} % "
        f"(float {row['top1_float']:.2f} %), {row['agreement']:.2f} % of the predictions unchanged"
    )


def save_artifacts(
    folder: Path,
    row: Row,
    config: Config,
    float_model: FloatModel,
    dataset: Dataset,
    quantized: nn.Module,
    report: Report,
) -> None:
    """The per-layer table, the quantized weights and the density figure of one bit width."""
    folder.mkdir(parents=True, exist_ok=True)
    suffix = f"w{row['bits']}"
    table = [dataclasses.asdict(layer) for layer in report.layers]
    _write_csv(folder / f"layers_{suffix}.csv", table)
    (folder / f"layers_{suffix}.json").write_text(json.dumps([_without_infinities(line) for line in table], indent=1))
    about = {
        "model": float_model.options,
        "classes": list(dataset.classes),
        "mean": float_model.config.data.mean,
        "std": float_model.config.data.std,
        "float_digest": float_model.digest,
        "quant": dataclasses.asdict(config.quant) | {"bits": row["bits"]},
        "top1": row["top1"],
    }
    save_quantized(quantized, folder / f"quantized_{suffix}.safetensors", about)
    title = f"{config.model['name']}, quant={config.quant.name}, {row['bits']} bits"
    draw(plots.levels_used, table, title, folder / f"levels_{suffix}.png")
    if row["bits"] == config.quant.bit_widths()[0]:
        # Prepared here, not in the background: tracing a network changes how every thread calls modules.
        first = next(iter(target_layers(prepare(float_model.model, config.quant)).items()))
        later(_density_figure, folder / "first_conv_density.png", *first, config.model["name"], report)
    if report.sensitivity is not None:
        sizes = {layer.layer: layer.weights for layer in report.layers}
        curve = pareto(report.sensitivity, sizes, config.quant)
        chosen = {layer.layer: layer.bits for layer in report.layers}
        draw(plots.pareto, curve, report.bits_mean, chosen, folder / f"pareto_{suffix}.png")
        (folder / f"sensitivities_{suffix}.json").write_text(json.dumps(report.sensitivity, indent=1))


def _density_figure(path: Path, name: str, layer: nn.Module, model: str, report: Report) -> None:
    """The first convolution as it is quantized: after folding and equalization, where these are asked for."""
    weights = layer.get_parameter("weight").detach().cpu().numpy()
    alpha = next((found.alpha for found in report.layers if found.layer == name), None)
    title = f"{model}, first convolution ({name}): {weights.size} weights"
    shown = digest(weights.tobytes().hex(), alpha, title)
    if shown not in _drawn:  # the jobs of a sweep over bit widths often share it
        draw(plots.weight_density, weights, alpha, title, path)
        _drawn.clear()
        _drawn[shown] = path.read_bytes()
    path.write_bytes(_drawn[shown])


_drawn: dict[str, bytes] = {}  # the last density figure, by what it shows


def save_sensitivity(folder: Path, bits: int, rows: list[Row], baseline: Evaluation) -> None:
    """The table and the figure of accuracy with one layer quantized at a time."""
    _write_csv(folder / f"one_layer_w{bits}.csv", rows)
    title = f"One layer at a time at {bits} bits (float {baseline.top1:.2f} %)"
    plots.sensitivity_bars(
        [row["layer"] for row in rows], [row["top1_drop"] for row in rows], title, folder / f"one_layer_w{bits}.png"
    )


def _write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _without_infinities(line: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: the SQNR of a layer that lost nothing is null there."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}


def make_record(
    job: Run,
    key: str,
    name: str,
    artifacts: Path,
    rows: list[Row],
    config: Config,
    float_model: FloatModel,
    dataset: Dataset,
    tags: dict[str, str],
) -> dict[str, Any]:
    """All that is logged of a finished job besides its artifacts. Several bit widths become series."""
    shown = dataclasses.replace(config.tracking, uri=config.tracking.uri and without_password(config.tracking.uri))
    resolved = dataclasses.replace(
        float_model.config, quant=config.quant, tracking=shown, output_dir=config.output_dir,
        overrides=config.overrides, resume=config.resume, fail_fast=config.fail_fast,
    )  # fmt: skip
    (artifacts / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(resolved), sort_keys=False))
    params = flatten(resolved) | {
        "data.used": dataset.name,
        "model.used": " ".join(f"{key}={value}" for key, value in float_model.options.items()),
    }
    if len(rows) == 1:
        points = [(0, metrics(rows[0]))]
    else:
        draw(plots.accuracy_against_bits, {config.quant.name: rows}, artifacts / "accuracy_against_bits.png")
        points = [(row["bits"], {f"{key}_vs_bits": value for key, value in metrics(row).items()}) for row in rows]
        points.append((0, {"top1_float": rows[0]["top1_float"]}))
    # The job that trained the float model logs the training, once.
    history, float_model.history = float_model.history, []
    points += list(enumerate(history, start=1))
    title = f"{config.model['name']} on {dataset.name}, quant={config.quant.name}"
    sentences = "\n\n".join(f"{row['bits']} bits. {row['diagnosis']}" for row in rows)
    note = f"{markdown_table({'': rows}, title)}\n\n{sentences}"
    return {
        "title": title,
        "overrides": config.overrides,
        "job": key,
        "run_id": job.run_id,
        "run": address(config.tracking, name),
        "uploaded": False,
        "rows": rows,
        "params": params,
        "tags": tags | {"mlflow.note.content": note},
        "points": points,
    }


def keep_and_log(folder: Path, record: dict[str, Any], job: Run) -> None:
    """Leave the record in the job's folder, then log it. Where that fails, a sweep tries again at its end."""
    write_record(folder, record)
    try:
        upload(folder, job)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        message = f"{record['overrides'] or 'The job'}: not logged yet, kept in {folder}: {without_password(reason)}"
        if SWEEP_VARIABLE not in os.environ:
            raise UserError(f"{message}. To log it later: python -m ptq_exp.tracking upload {folder}") from error
        log.warning("%s", message)
