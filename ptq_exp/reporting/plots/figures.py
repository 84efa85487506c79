"""The figures of a bit width, which need its network. They are drawn in the background."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ptq_exp.base.background import draw, later
from ptq_exp.base.files import digest
from ptq_exp.data.dataset import Dataset
from ptq_exp.evaluation.accuracy import Evaluation
from ptq_exp.quantization.allocation import pareto
from ptq_exp.quantization.effective_weights import target_layers
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.quantize import Quantized
from ptq_exp.quantization.report import Report
from ptq_exp.reporting import plots
from ptq_exp.reporting.plots.panels import activation_panels, weight_panels
from ptq_exp.results.records import BitWidthResult
from ptq_exp.results.series import width


@dataclass(frozen=True)
class BitWidthFigures:
    """The data for the figures of one bit width."""

    result: BitWidthResult
    options: QuantConfig
    model: str  # the network's name
    dataset: Dataset
    quantized: Quantized
    baseline: Evaluation
    evaluation: Evaluation

    def draw(self, folder: Path) -> None:
        """Draw all figures. Those of the weights take longest and are drawn only for the job's first bit width."""
        suffix, widths = f"w{self.result.bits}", self.options.bit_widths()
        title = f"{width(self.result)}, {self.options.name}, {self.model}"
        if len(widths) == 1:  # several bit widths share a heat map
            draw(plots.levels_used, self.result.layers, title, folder / f"levels_{suffix}.png")
        before, after = (confusion(self.dataset, answers) for answers in (self.baseline, self.evaluation))
        classes = list(self.dataset.classes)
        draw(plots.confusion_change, classes, before, after, f"By class: {title}", folder / f"confusion_{suffix}.png")
        if self.result.bits == widths[0]:
            self._draw_weights(folder, suffix, title)
        if self.quantized.report.sensitivity is not None:
            sizes = {layer.layer: layer.weights for layer in self.quantized.report.layers}
            curve = pareto(self.quantized.report.sensitivity, sizes, self.options)
            chosen = {layer.layer: layer.stored_bits for layer in self.quantized.report.layers}
            draw(plots.mixed_precision, curve, self.quantized.report.bits_mean, chosen, folder / f"pareto_{suffix}.png")

    def _draw_weights(self, folder: Path, suffix: str, title: str) -> None:
        reference = target_layers(self.quantized.reference, self.options.layers)
        panels = weight_panels(reference, self.quantized.network, self.quantized.report)
        draw(plots.weight_densities, panels, f"Weights: {title}", folder / f"weights_{suffix}.png")
        name, first = next(iter(reference.items()))
        # Copied here, since a GPU that another thread uses may be capturing a graph.
        weights = first.get_parameter("weight").detach().cpu()
        later(_density_figure, folder / "first_conv_density.png", name, weights, self.model, self.quantized.report)
        if inputs := activation_panels(self.quantized.report):
            shown = f"{self.options.act_bits}-bit activations: {title}"
            draw(plots.activation_histograms, inputs, shown, folder / f"activations_{suffix}.png")


def confusion(dataset: Dataset, answers: Evaluation) -> list[list[int]]:
    """Test images by true class (rows) and predicted class (columns)."""
    count = len(dataset.classes)
    pairs = dataset.test_labels.cpu() * count + answers.predictions
    counts: list[list[int]] = torch.bincount(pairs, minlength=count * count).reshape(count, count).tolist()
    return counts


def _density_figure(path: Path, name: str, tensor: Tensor, model: str, report: Report) -> None:
    """Draw the weights of the first convolution as they are quantized: after folding and equalization, if requested."""
    weights = tensor.numpy()
    alpha = next((found.alpha for found in report.layers if found.layer == name), None)
    title = f"{model}, first convolution ({name}): {weights.size} weights"
    shown = digest(weights.tobytes().hex(), alpha, title)
    if shown not in _drawn:  # the jobs of a sweep over bit widths often share it
        draw(plots.weight_density, weights, alpha, title, path)
        _drawn.clear()
        _drawn[shown] = path.read_bytes()
    path.write_bytes(_drawn[shown])


_drawn: dict[str, bytes] = {}  # the last density figure, by what it shows


def draw_sensitivities(path: Path, bits: int, drops: dict[str, float], float_top1: float) -> None:
    """Draw the top-1 drop in points with one layer quantized at a time; `drops` is by layer name."""
    title = f"One layer quantized at a time to {bits} bits (float {float_top1:.2f} %)"
    draw(plots.sensitivity_bars, list(drops), list(drops.values()), title, path)
