"""Quantize a network: prepare it, find the ranges, round the weights, calibrate the activations, correct, report."""

import copy
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.quantization.activations import quantize_activations
from ptq_exp.quantization.allocation import plan_mixed
from ptq_exp.quantization.corrections import correct_biases, equalize, fold_batch_norm, reestimate_batch_norm
from ptq_exp.quantization.grids import stored_bits
from ptq_exp.quantization.layers import quantized_layers
from ptq_exp.quantization.memo import Memo
from ptq_exp.quantization.modules import copy_network, materialize
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.progress import Progress
from ptq_exp.quantization.report import Report, layer_outputs, layer_report, make_report, sqnr_db
from ptq_exp.quantization.rounding import EIGHT, learn_rounding, plan_bits, round_weights, target_layers


def quantize(
    model: nn.Module,
    config: QuantConfig,
    bits: int,
    calibration: Tensor,
    seed: int = 0,
    progress: Progress | None = None,
    store: Path | None = None,
    memo: Memo | None = None,
) -> tuple[nn.Module, Report]:
    """A quantized copy of the float `model` at `bits` bits, and the report on its layers.

    `calibration` holds normalized images (N, 3, H, W) on the model's device; `seed` decides the draws of learned
    rounding. A folder `store` keeps every reconstructed unit, so that an interrupted reconstruction goes on there.
    `memo` carries what calls with the same model, calibration images and seed have in common from one to the next.
    The float model is left as it is. Raises `UserError` where there is nothing to quantize.
    """
    memo = Memo() if memo is None else memo
    kind = (config.fold_batch_norm, config.equalize, config.layers)
    reference = memo.once(("reference", *kind), lambda: prepare(model, config))
    if config.mixed:
        torch.manual_seed(seed)
        plan, sensitivity = plan_mixed(reference, config, bits, calibration, memo, progress)
    else:
        plan, sensitivity = plan_bits(reference, config, bits), None
    network = copy.deepcopy(reference)
    round_weights(network, config, plan)
    layers, observed = quantized_layers(network), {}
    if config.act_bits is not None:
        everything = list(target_layers(reference, config.layers))
        widths = {name: _activation_bits(name, everything, config) for name in layers}
        observed = quantize_activations(
            network, reference, layers, widths, calibration, memo, rule=config.act_rule,
            percentile=config.act_percentile, alpha=config.act_alpha,
            spared=None if config.act_input_image else everything[0],
            residual_bits=config.act_bits if config.act_residual else None, progress=progress,
        )  # fmt: skip
    weights = {name: layer.weight.detach() for name, layer in target_layers(reference, config.layers).items()}
    learn_rounding(network, reference, weights, config, plan, calibration, seed, progress, store)
    if config.bias_correction:
        correct_biases(network, reference, calibration, progress)
    if config.batch_norm_reestimation:
        reestimate_batch_norm(network, calibration)
    wanted = memo.once(("outputs", *kind), lambda: layer_outputs(reference, list(weights), calibration))
    found = layer_outputs(network, list(plan), calibration)
    # A layer that does not run loses nothing.
    outputs = {name: sqnr_db(wanted[name], found[name]) if name in wanted else math.inf for name in plan}
    rows = [
        layer_report(name, layer, weights[name], stored_bits(layer.bits, config.sign_bit, config.grid), outputs[name])
        for name, layer in quantized_layers(network).items()
    ]
    return network, make_report(network, rows, sensitivity, observed)


def prepare(model: nn.Module, config: QuantConfig) -> nn.Module:
    """A float copy in evaluation mode whose weights are plain parameters, batch norm folded and layers equalized where
    the configuration says so. It computes what `model` does."""
    if not target_layers(model, config.layers):
        raise UserError("The network has no convolution, so there is nothing to quantize.")
    reference = copy_network(model).eval()
    materialize(reference)
    for parameter in reference.parameters():
        parameter.requires_grad_(False)
    if config.fold_batch_norm:
        fold_batch_norm(reference)
    if config.equalize:
        equalize(reference)
    return reference


def _activation_bits(name: str, names: list[str], config: QuantConfig) -> int:
    assert config.act_bits is not None
    ends = {names[0], names[-1]}
    return EIGHT if config.first_and_last == "eight" and name in ends else config.act_bits
