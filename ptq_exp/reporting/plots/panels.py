"""The data for the figures of weights and activations: extracted from networks, small and plain."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptq_exp.quantization.activations import Observation
from ptq_exp.quantization.layers import QuantizedLayer, quantized_layers
from ptq_exp.quantization.report import Report
from ptq_exp.reporting.plots.distributions import ActivationPanel, WeightPanel

BINS = 48  # of the histogram of a layer's weights
ACTIVATION_BINS = 64  # of the histogram of its input; must divide the number of calibration bins
MOST_STEMS = 64  # levels that can be distinguished in the figure; more are merged into bins
FURTHEST = 2.0  # times alpha; weights beyond it are counted as clipped but not drawn


def weight_panels(reference: dict[str, Any], quantized: nn.Module, report: Report) -> list[WeightPanel]:
    """The float weights of every layer (of `reference`) and their levels."""
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
        panels.append(
            WeightPanel(
                layer=about.layer,
                edges=edges.tolist(),
                density=(counts / len(weights) / (edges[1] - edges[0])).tolist(),
                levels=places,
                level_density=density,
                alphas=(alpha.min().item(), alpha.max().item()),
                clipped_percent=about.clipped_percent,
                levels_used=about.levels_used,
                levels_available=about.most_levels,
            )
        )
    return panels


def _alpha(layer: QuantizedLayer) -> Tensor:
    """The larger end of the grid, in a shape that broadcasts against the weights."""
    low, high = layer.ends()
    return torch.maximum(high, -low)


def _level_density(values: Any, layer: QuantizedLayer) -> tuple[list[float], list[float]]:
    """The levels in `values` (in units of alpha), and the share of each divided by its distance to the next."""
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


def activation_panels(report: Report) -> list[ActivationPanel]:
    """The histograms of the calibration with the clipping values."""
    alphas = {layer.layer: layer.act_alpha for layer in report.layers}
    return [
        ActivationPanel(name, _shares(seen), seen.limit, alpha)
        for name, seen in report.activations.items()
        if (alpha := alphas[name]) is not None
    ]


def _shares(seen: Observation) -> list[float]:
    counts = seen.histogram.reshape(ACTIVATION_BINS, -1).sum(1)
    shares: list[float] = (counts / counts.sum()).tolist()
    return shares
