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
from ptq_exp.quantization.layers import quantized_layers
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.quantize import Quantized
from ptq_exp.reporting import plots
from ptq_exp.reporting.plots.panels import activation_panels, weight_panels
from ptq_exp.results.names import data_in_words
from ptq_exp.results.records import BitWidthResult
from ptq_exp.results.series import nominal_width, stored_width

FITTED = ("mse", "lp")  # rules of alpha whose ranges depend on the bits


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
        title = self._subject(bits_of(self.result))
        if len(widths) == 1:  # several bit widths share a heat map
            draw(plots.levels_used, self.result.layers, f"Levels of {title}", folder / f"levels_{suffix}.png")
        before, after = (confusion(self.dataset, answers) for answers in (self.baseline, self.evaluation))
        if before != after:
            classes, path = list(self.dataset.classes), folder / f"confusion_{suffix}.png"
            draw(plots.confusion_change, classes, before, after, f"Predictions of {title}", path)
        if self.result.bits == widths[0]:
            self._draw_weights(folder, suffix, title)
            self._draw_density(folder / "first_conv_density.png")
        if self.quantized.report.sensitivity is not None:
            sizes = {layer.layer: layer.weights for layer in self.quantized.report.layers}
            curve = pareto(self.quantized.report.sensitivity, sizes, self.options)
            chosen = {layer.layer: layer.stored_bits for layer in self.quantized.report.layers}
            path = folder / f"pareto_{suffix}.png"
            title = f"Mixed precision of {self._subject()}"
            draw(plots.mixed_precision, curve, self.quantized.report.bits_mean, chosen, title, path)

    def draw_sensitivities(self, path: Path, drops: dict[str, tuple[float, float, float]]) -> None:
        """Draw the top-1 drop in points, with its 95 % CI, with one layer quantized at a time; `drops` is by layer."""
        title = f"One layer at a time, {self._subject(bits_of(self.result))}"
        draw(plots.sensitivity_bars, drops, self.evaluation.count, title, path)

    def _subject(self, bits: str = "") -> str:
        """Network, data, bits and method: `ResNet-20 on CIFAR-10, W4: best`. The method may be long."""
        parts = [f"{self.model} on {data_in_words(self.dataset.name)}", bits]
        return f"{', '.join(filter(None, parts))}: {self.options.name}"

    def _draw_weights(self, folder: Path, suffix: str, title: str) -> None:
        reference = target_layers(self.quantized.reference, self.options.layers)
        panels = weight_panels(reference, self.quantized.network, self.quantized.report)
        draw(plots.weight_densities, panels, f"Weights of {title}", folder / f"weights_{suffix}.png")
        if inputs := activation_panels(self.quantized.report):
            path = folder / f"activations_{suffix}.png"
            draw(plots.activation_histograms, inputs, f"Activations of {title}", path)

    def _draw_density(self, path: Path) -> None:
        """Draw the weights of the first convolution as they are quantized: after folding and equalization."""
        name, first = next(iter(target_layers(self.quantized.reference, self.options.layers).items()))
        layer = quantized_layers(self.quantized.network).get(name)
        # Copied here, since a GPU that another thread uses may be capturing a graph.
        weights = first.get_parameter("weight").detach().cpu()
        lows, highs = ([], []) if layer is None else (end.flatten().tolist() for end in layer.ends())
        fitted = self.options.alpha_rule in FITTED or self.options.rounding != "nearest"
        title = f"First convolution of {self._subject(bits_of(self.result) if fitted else '')}"
        later(_density_figure, path, weights, lows, highs, title)


def bits_of(result: BitWidthResult) -> str:
    """The widths for a title: `W5 (quant.bits=4)`, `W4A4`."""
    nominal = f" (quant.bits={result.bits})" if nominal_width(result) else ""
    activations = "" if result.act_bits is None else f"A{result.act_bits}"
    return f"W{stored_width(result)}{activations}{nominal}"


def confusion(dataset: Dataset, answers: Evaluation) -> list[list[int]]:
    """Test images by true class (rows) and predicted class (columns)."""
    count = len(dataset.classes)
    pairs = dataset.test_labels.cpu() * count + answers.predictions
    counts: list[list[int]] = torch.bincount(pairs, minlength=count * count).reshape(count, count).tolist()
    return counts


def _density_figure(path: Path, tensor: Tensor, lows: list[float], highs: list[float], title: str) -> None:
    weights = tensor.numpy()
    shown = digest(weights.tobytes().hex(), lows, highs, title)
    if shown not in _drawn:  # the jobs of a sweep over bit widths often share it
        draw(plots.weight_density, weights, lows, highs, title, path)
        _drawn.clear()
        _drawn[shown] = path.read_bytes()
    path.write_bytes(_drawn[shown])


_drawn: dict[str, bytes] = {}  # the last density figure, by what it shows
