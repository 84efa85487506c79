"""Figures as PNG and SVG files, drawn from plain data: legible at half their size, in colour-blind-safe colours."""

from ptq_exp.reporting.plots.accuracy import accuracy_against_bits, accuracy_against_size, pareto_front
from ptq_exp.reporting.plots.classes import confusion_change
from ptq_exp.reporting.plots.distributions import activation_histograms, weight_densities, weight_density
from ptq_exp.reporting.plots.layers import layer_heat_map, levels_used, mixed_precision, sensitivity_bars
from ptq_exp.reporting.plots.search import search_trials
from ptq_exp.reporting.plots.training import training_curves

__all__ = [
    "accuracy_against_bits",
    "accuracy_against_size",
    "activation_histograms",
    "confusion_change",
    "layer_heat_map",
    "levels_used",
    "mixed_precision",
    "pareto_front",
    "search_trials",
    "sensitivity_bars",
    "training_curves",
    "weight_densities",
    "weight_density",
]
