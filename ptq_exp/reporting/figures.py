"""What a job's figures show, taken from its networks as small plain data, and drawn when nothing waits for it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptq_exp.config import Config, digest
from ptq_exp.data.dataset import Dataset
from ptq_exp.evaluation.accuracy import Evaluation
from ptq_exp.quantization.activations import Observation
from ptq_exp.quantization.allocation import pareto
from ptq_exp.quantization.layers import QuantizedLayer, quantized_layers
from ptq_exp.quantization.quantize import Quantized
from ptq_exp.quantization.report import Report
from ptq_exp.quantization.rounding import target_layers
from ptq_exp.reporting import plots
from ptq_exp.results.series import Row, as_series, labels, seed_groups, width, without_seed
from ptq_exp.runs.background import draw, later

BINS = 48  # of a layer's weights
ACTIVATION_BINS = 64  # of its input; must divide the bins of the calibration
MOST_STEMS = 64  # levels that can be told apart; more become bins
MOST_HEAT_MAPS = 6  # of a sweep
FURTHEST = 2.0  # times alpha; weights beyond are counted among the clipped, not drawn


def draw_bit_width(
    folder: Path, row: Row, config: Config, dataset: Dataset, quantized: Quantized,
    baseline: Evaluation, result: Evaluation, table: list[dict[str, Any]],
) -> None:  # fmt: skip
    """The figures of one bit width. Those of the weights, which take longest, once a job: at its first bit width."""
    suffix, widths, report = f"w{row['bits']}", config.quant.bit_widths(), quantized.report
    title = f"{width(row)}, {config.quant.name}, {config.model['name']}"
    if len(widths) == 1:  # several share a heat map
        draw(plots.levels_used, table, title, folder / f"levels_{suffix}.png")
    before, after = (confusion(dataset, answers) for answers in (baseline, result))
    classes, by_class = list(dataset.classes), f"By class: {title}"
    draw(plots.confusion_change, classes, before, after, by_class, folder / f"confusion_{suffix}.png")
    if row["bits"] == widths[0]:
        reference = target_layers(quantized.reference, config.quant.layers)
        panels = weight_panels(reference, quantized.network, report)
        draw(plots.weight_densities, panels, f"Weights: {title}", folder / f"weights_{suffix}.png")
        name, first = next(iter(reference.items()))
        later(_density_figure, folder / "first_conv_density.png", name, first, config.model["name"], report)
        if inputs := activation_panels(report):
            shown = f"{config.quant.act_bits}-bit activations: {title}"
            draw(plots.activation_histograms, inputs, shown, folder / f"activations_{suffix}.png")
    if report.sensitivity is not None:
        sizes = {layer.layer: layer.weights for layer in report.layers}
        curve = pareto(report.sensitivity, sizes, config.quant)
        chosen = {layer.layer: layer.stored_bits for layer in report.layers}
        draw(plots.mixed_precision, curve, report.bits_mean, chosen, folder / f"pareto_{suffix}.png")


def draw_job(folder: Path, rows: list[Row], layers: dict[int, Any], history: list[Any], title: str, name: str) -> None:
    """The figures over all bit widths of a job, whose method is called `name`, and of its training if it trained."""
    if len(rows) > 1:
        draw(plots.accuracy_against_bits, {name: rows}, folder / "accuracy_against_bits.png", title)
        draw(plots.accuracy_against_size, {name: rows}, folder / "accuracy_against_size.png", title)
        draw(plots.layer_heat_map, layers, title, folder / "layers.png")
    if history:
        draw(plots.training_curves, history, "Training of the float network", folder / "training.png")


def draw_sweep(folder: Path, jobs: list[dict[str, Any]]) -> None:
    """The figures over all jobs of a sweep, from their records."""
    if not jobs:
        return
    method = " ".join(jobs[0].get("method", []))
    series = {label or method: rows for label, rows in seed_groups(as_series(jobs)).items()}
    plots.accuracy_against_bits(series, folder / "accuracy_against_bits.png")
    plots.accuracy_against_size(series, folder / "accuracy_against_size.png")
    # A job with several bit widths draws this itself.
    if all(len(job["rows"]) == 1 for job in jobs):
        tables = {label: found for label, found in layer_tables(jobs).items() if len(found) > 1}
        for number, (label, found) in enumerate(list(tables.items())[:MOST_HEAT_MAPS]):
            name = "layers.png" if len(tables) == 1 else f"layers_{number + 1}.png"
            plots.layer_heat_map(found, label or jobs[0]["title"], folder / name)


def layer_tables(jobs: list[dict[str, Any]]) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """Of every series the per-layer table of each bit width; of several seeds the mean."""
    found: dict[str, dict[int, list[Any]]] = {}
    for job, label in zip(jobs, labels(jobs), strict=True):
        for bits, table in job.get("layers", {}).items():
            found.setdefault(without_seed(label), {}).setdefault(int(bits), []).append(table)
    return {
        label: {bits: [_mean_line(lines) for lines in zip(*several, strict=True)] for bits, several in tables.items()}
        for label, tables in found.items()
    }


def _mean_line(lines: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    def mean(key: str) -> float | None:
        values = [line[key] for line in lines]
        return None if None in values else sum(values) / len(values)

    return lines[0] | {key: mean(key) for key in ("sqnr_db", "levels_used")}


def confusion(dataset: Dataset, answers: Evaluation) -> list[list[int]]:
    """Test images by true class (rows) and predicted class (columns)."""
    count = len(dataset.classes)
    pairs = dataset.test_labels.cpu() * count + answers.predictions
    counts: list[list[int]] = torch.bincount(pairs, minlength=count * count).reshape(count, count).tolist()
    return counts


def weight_panels(reference: dict[str, Any], quantized: nn.Module, report: Report) -> list[dict[str, Any]]:
    """What `plots.weight_densities` needs: of every layer the float weights (of `reference`) and their levels, in units
    of alpha, which may differ from channel to channel."""
    layers = quantized_layers(quantized)
    panels = []
    for about in report.layers:
        layer = layers[about.layer]
        alpha = _alpha(layer)
        weights = (reference[about.layer].weight.detach() / alpha).flatten().cpu().numpy()
        levels = (layer.layer.weight.detach() / alpha).flatten().cpu().numpy()
        end = max(1.0, min(float(np.abs(weights).max()), FURTHEST))
        counts, edges = np.histogram(weights, BINS, (-end, end))
        places, density = _level_density(levels, layer)
        panels.append({
            "layer": about.layer, "edges": edges.tolist(), "levels": places, "level_density": density,
            "density": (counts / len(weights) / (edges[1] - edges[0])).tolist(),
            "alpha": about.alpha, "clipped_percent": about.clipped_percent,
            "levels_used": about.levels_used, "levels_available": about.levels_available,
        })  # fmt: skip
    return panels


def _alpha(layer: QuantizedLayer) -> Tensor:
    """The larger end of the grid, shaped to broadcast against the weights."""
    low, high = layer.ends()
    return torch.maximum(high, -low)


def _level_density(values: Any, layer: QuantizedLayer) -> tuple[list[float], list[float]]:
    """The levels that occur in `values` (in units of alpha), and the share of each over its distance to the next."""
    places, counts = np.unique(values.round(4), return_counts=True)
    if len(places) > MOST_STEMS:
        counts, edges = np.histogram(values, MOST_STEMS, (-1, 1))
        return ((edges[1:] + edges[:-1]) / 2).tolist(), (counts / len(values) / (edges[1] - edges[0])).tolist()
    codes = torch.arange(layer.grid.low, layer.grid.high + 1, device=layer.scale.device)
    first = (layer.scale.flatten()[0], layer.zero_point.flatten()[0])
    grid = (layer.grid.dequantize(codes.to(first[0].dtype), *first) / _alpha(layer).flatten()[0]).cpu().numpy()
    gaps = np.diff(grid)
    room = (np.append(gaps, gaps[-1]) + np.insert(gaps, 0, gaps[0])) / 2
    nearest = np.abs(places[:, None] - grid[None]).argmin(1)
    return places.tolist(), (counts / len(values) / room[nearest]).tolist()


def activation_panels(report: Report) -> list[dict[str, Any]]:
    """What `plots.activation_histograms` needs, from the histograms that the calibration made."""
    found = {layer.layer: layer for layer in report.layers}
    return [
        {"layer": name, "shares": _shares(seen), "limit": seen.limit, "alpha": found[name].act_alpha}
        for name, seen in report.activations.items()
    ]


def _shares(seen: Observation) -> list[float]:
    counts = seen.histogram.reshape(ACTIVATION_BINS, -1).sum(1)
    shares: list[float] = (counts / counts.sum()).tolist()
    return shares


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


def draw_sensitivities(folder: Path, bits: int, rows: list[Row], baseline: Evaluation) -> None:
    """Accuracy with one layer quantized at a time."""
    title = f"One layer at a time at {bits} bits (float {baseline.top1:.2f} %)"
    layers, drops = [row["layer"] for row in rows], [row["top1_drop"] for row in rows]
    draw(plots.sensitivity_bars, layers, drops, title, folder / f"one_layer_w{bits}.png")
