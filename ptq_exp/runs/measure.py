"""One bit width: quantize the network, measure its accuracy, and write tables and figures to the artifacts."""

import csv
import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ptq_exp.base.console import console, log, progress
from ptq_exp.base.errors import UserError
from ptq_exp.base.files import digest
from ptq_exp.base.outlook import Span, outlook
from ptq_exp.base.text import write_text
from ptq_exp.config import Config
from ptq_exp.evaluation.accuracy import Evaluation, drop_interval, evaluate
from ptq_exp.evaluation.paired import Correct
from ptq_exp.networks import custom
from ptq_exp.quantization.allocation import one_layer_at_a_time
from ptq_exp.quantization.coverage import covers_operations
from ptq_exp.quantization.diagnosis import diagnose, diagnose_in_short
from ptq_exp.quantization.learning import RECONSTRUCTION_VERSION, learns
from ptq_exp.quantization.modules import counters
from ptq_exp.quantization.quantize import quantize
from ptq_exp.quantization.report import FLOAT_BYTES, Report
from ptq_exp.quantization.traced import Traced
from ptq_exp.reporting.plots.figures import BitWidthFigures
from ptq_exp.results.names import network_in_words
from ptq_exp.results.records import BitWidthResult
from ptq_exp.results.series import NOT_DISTINGUISHABLE, verdict, width
from ptq_exp.runs.exporting import export_network
from ptq_exp.runs.shared import Shared


def measure_bit_width(
    bits: int, config: Config, shared: Shared, device: torch.device, artifacts: Path
) -> BitWidthResult:
    """Quantize to `bits` bits, evaluate, and write tables, figures and the network to `artifacts`.

    Raises `UserError` if the quantized network's outputs are not finite.
    """
    if learns(config.quant, bits):
        outlook.width_begins()
    calibration, store = shared.calibration(config), reconstruction_store(config, shared, bits, device)
    started = time.perf_counter()
    quantized = quantize(shared.float_model.model, config.quant, bits, calibration, show_progress, store)
    seconds = time.perf_counter() - started
    evaluation = shared.measure(quantized.network, f"Evaluating {bits} bits")
    if not math.isfinite(evaluation.loss):
        raise UserError(f"The outputs of the network quantized to {bits} bits are not finite.")
    result = make_result(bits, config, shared, quantized.report, evaluation, seconds)
    model = network_in_words(config.model, str(config.model["name"]))
    figures = BitWidthFigures(result, config.quant, model, shared.dataset, quantized, shared.baseline, evaluation)
    artifacts.mkdir(parents=True, exist_ok=True)
    save_tables(artifacts, result, quantized.report)
    result = export_network(result, config, shared, quantized, evaluation, artifacts)
    figures.draw(artifacts)
    log.info("%s", headline(result, config.quant.name))
    if result.top1_drop_ci_low > 0:  # else the line above says that the networks are not distinguishable
        log.info("%s", diagnose_in_short(quantized.report, config.quant, _told))
    if config.quant.sensitivity:
        measure_sensitivity(figures, config, shared, artifacts)
    return result


_told: set[str] = set()  # advice that this process has given


def make_result(
    bits: int, config: Config, shared: Shared, report: Report, evaluation: Evaluation, quantize_seconds: float
) -> BitWidthResult:
    """The result of one bit width from both networks' predictions on the test images."""
    baseline = shared.baseline
    low, high = evaluation.interval()
    float_low, float_high = baseline.interval()
    drop_low, drop_high = drop_interval(baseline, evaluation, shared.dataset.test_labels)
    state, skipped = shared.float_model.model.state_dict(), counters(shared.float_model.model)
    hits = (evaluation.predictions == shared.dataset.test_labels.cpu()).tolist()
    parameters = sum(value.numel() for name, value in state.items() if name not in skipped)
    return BitWidthResult(
        bits=bits,
        act_bits=config.quant.act_bits,
        top1=evaluation.top1,
        top1_ci_low=low,
        top1_ci_high=high,
        chance=100 / len(shared.dataset.classes),
        top1_float=baseline.top1,
        top1_float_ci_low=float_low,
        top1_float_ci_high=float_high,
        top1_drop=baseline.top1 - evaluation.top1,
        top1_drop_ci_low=drop_low,
        top1_drop_ci_high=drop_high,
        top5=evaluation.top5,
        agreement=evaluation.agreement(baseline),
        loss=evaluation.loss,
        loss_float=baseline.loss,
        bits_mean=report.bits_mean,
        size_bytes=report.size_bytes,
        size_bytes_float=FLOAT_BYTES * parameters,
        quantize_seconds=quantize_seconds,
        evaluate_seconds=evaluation.seconds,
        diagnosis=diagnose(report, config.quant, significant=drop_low > 0),
        layers=tuple(report.layers),
        quantized_percent=report.quantized_percent,
        float_tensors=report.float_tensors,
        limits=tuple(report.limits),
        correct=Correct.of(hits, shared.test_fingerprint),
    )


def headline(result: BitWidthResult, method: str) -> str:
    """The line that a job logs for one bit width."""
    activations = "" if result.act_bits is None else f", {result.act_bits}-bit activations"
    told = f", {NOT_DISTINGUISHABLE}" if verdict(result) == NOT_DISTINGUISHABLE else ""
    return (
        f"{method}, {width(result)}{activations}: top-1 {result.top1:.2f} % "
        f"(float {result.top1_float:.2f} %{told}), {result.agreement:.2f} % of the predictions unchanged"
    )


def show_progress(description: str, steps: int, span: Span | None = None) -> Any:
    """Show a progress bar in a terminal, or log a line elsewhere."""
    if not console.is_terminal:
        log.info("%s%s", description, f" (left: {outlook})" if str(outlook) else "")
    return progress(description, steps, span)


def reconstruction_store(config: Config, shared: Shared, bits: int, device: torch.device) -> Path | None:
    """The folder of reconstructed units, so that an interrupted run can continue, or None without learned rounding."""
    if config.quant.rounding == "nearest":
        return None
    unrelated: dict[str, Any] = {"name": "", "sensitivity": False, "calibration_seed": None}
    if not config.quant.act_learned:  # units do not depend on activations, unless operations became modules
        unrelated |= {"act_bits": "any" if covers_operations(config.quant) else None, "act_learned": True}
    method = dataclasses.asdict(config.quant) | unrelated | {"bits": bits}
    function = custom.identity(shared.float_model.options)
    key = digest(
        RECONSTRUCTION_VERSION,
        function,
        shared.network_digest,
        shared.fingerprint,
        method,
        config.calibration_seed,
        device.type,
    )
    return config.cache / "reconstruction" / key[:16]


def save_tables(folder: Path, result: BitWidthResult, report: Report) -> None:
    """Write the per-layer table as CSV and JSON and, for mixed precision, the sensitivities."""
    table = [dataclasses.asdict(layer) for layer in result.layers]
    _write_csv(folder / f"layers_w{result.bits}.csv", table)
    # JSON has no infinity, so the SQNR of a layer without quantization error is null.
    finite = [
        {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()}
        for line in table
    ]  # fmt: skip
    write_text(folder / f"layers_w{result.bits}.json", json.dumps(finite, indent=1))
    if report.sensitivity is not None:
        write_text(folder / f"sensitivities_w{result.bits}.json", json.dumps(report.sensitivity, indent=1))


def measure_sensitivity(figures: BitWidthFigures, config: Config, shared: Shared, artifacts: Path) -> None:
    """Measure the accuracy with one layer rounded at a time, to its bits in the plan. Writes a table and a figure."""
    result, dataset = figures.result, shared.dataset
    quantized, plan = figures.quantized, figures.quantized.plan
    sqnr = {layer.layer: layer.sqnr_db for layer in result.layers}
    rows: list[dict[str, Any]] = []
    drops: dict[str, tuple[float, float, float]] = {}
    with show_progress("Measuring sensitivities", len(plan)) as advance:
        for name, single in one_layer_at_a_time(Traced(quantized.reference), config.quant, plan):
            found = evaluate(single, dataset.test_images, dataset.test_labels, shared.float_model.normalize)
            drop = result.top1_float - found.top1
            row = {"layer": name, "bits": plan[name], "top1": found.top1, "top1_drop": drop, "loss": found.loss}
            rows.append(row | {"sqnr_db": sqnr[name]})
            drops[name] = drop, *drop_interval(shared.baseline, found, dataset.test_labels)
            advance()
    _write_csv(artifacts / f"one_layer_w{result.bits}.csv", rows)
    figures.draw_sensitivities(artifacts / f"one_layer_w{result.bits}.png", drops)


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
