"""The effect of quantization on every layer, and the size of the quantized network."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ptq_exp.quantization.activations import Observation
from ptq_exp.quantization.context import Context
from ptq_exp.quantization.coverage import float_tensors, limits
from ptq_exp.quantization.grids import stored_bits
from ptq_exp.quantization.hooks import Inputs, watching
from ptq_exp.quantization.layer_report import LayerReport
from ptq_exp.quantization.layers import QuantizedLayer, quantized_layers
from ptq_exp.quantization.modules import counters, unique_state
from ptq_exp.quantization.sparsity import percent_zero

FLOAT_BYTES = 4
IMAGES = 16  # of the calibration images, for the outputs' SQNR


@dataclass(frozen=True)
class Report:
    """The per-layer table and the totals."""

    layers: list[LayerReport]
    bits_mean: float  # stored bits per weight (including sign), the mean over all quantized weights
    sensitivity: dict[str, dict[float, float]] | None  # of mixed precision: layer -> bits -> divergence in nats
    activations: dict[str, Observation]  # the calibrated inputs of layers with quantized inputs
    quantized_percent: float  # of all parameters with two or more dimensions
    float_tensors: dict[str, str]  # the others of these, with the reason why each is not quantized
    limits: list[str]  # what is not available for this network, one sentence each
    size_bytes: int  # packed codes, and scales and everything else (batch norm, biases, other layers) in float32


def layer_report(name: str, layer: QuantizedLayer, weight: Tensor, bits: float, output_db: float) -> LayerReport:
    """The row of `layer` with the float weights `weight`."""
    low, high = layer.ends()
    alpha = torch.maximum(high, -low)
    beyond = 1e-6 * (high - low)  # scale times level may differ from the end of the range by rounding
    groups = layer.codes.reshape(layer.scale.numel(), -1)
    used = sum(len(torch.unique(group)) for group in groups) / len(groups)
    return LayerReport(
        layer=name,
        shape="x".join(map(str, weight.shape)),
        weights=weight.numel(),
        stored_bits=bits,
        alpha=alpha.mean().item(),
        weight_std=weight.std(correction=0).item(),
        weight_max=weight.abs().max().item(),
        clipped_percent=100 * ((weight > high + beyond) | (weight < low - beyond)).float().mean().item(),
        sparsity_float_percent=percent_zero(weight),
        sparsity_percent=percent_zero(layer.layer.weight.detach()),
        levels_used=round(used),
        levels_available=layer.grid.levels,
        sqnr_db=sqnr_db(weight, layer.layer.weight.detach()),
        output_sqnr_db=output_db,
        act_bits=layer.activation.bits if layer.activation else None,
        act_alpha=layer.activation.alpha.item() if layer.activation else None,
        levels_usable=min(layer.grid.levels, groups.shape[1]),
    )


def sqnr_db(signal: Tensor, quantized: Tensor) -> float:
    """Signal-to-quantization-noise ratio in dB; infinite if there is no error."""
    # In double precision, since the square of a large weight exceeds single precision.
    noise, signal_norm = (torch.linalg.vector_norm(x.double()).item() for x in (signal - quantized, signal))
    if noise == 0:
        return math.inf
    return 20 * math.log10(signal_norm / noise) if signal_norm > 0 else -math.inf


@torch.no_grad()
def layer_outputs(network: nn.Module, names: list[str], images: Tensor) -> dict[str, Tensor]:
    """The outputs (flattened vectors) of the modules called `names` on the first of the normalized `images`.

    Modules that do not run are left out. The outputs of several calls are concatenated.
    """
    found: dict[str, list[Tensor]] = {}

    def keep(name: str, _: Inputs, output: Tensor) -> None:
        found.setdefault(name, []).append(output.clone())  # a copy, since an in-place ReLU may follow

    with watching(network, names, outputs=keep) as forward:
        forward(images[:IMAGES])
    return {name: torch.cat([x.flatten() for x in several]) for name, several in found.items()}


def make_report(context: Context) -> Report:
    """The report on a context's quantized network after the last step."""
    options, network, weights = context.options, context.network, context.weights()
    wanted = context.calibration.once(
        ("outputs", context.reference, options.layers),
        lambda: layer_outputs(context.reference, list(weights), context.images),
    )
    found = layer_outputs(network, list(context.plan), context.images)
    # A layer that does not run has no error.
    outputs = {name: sqnr_db(wanted[name], found[name]) if name in wanted else math.inf for name in context.plan}
    rows = [
        layer_report(name, layer, weights[name], stored_bits(layer.bits, options.sign_bit, options.grid), outputs[name])
        for name, layer in quantized_layers(network).items()
    ]
    code_bits = sum(row.weights * row.stored_bits for row in rows)
    bits_mean = code_bits / sum(row.weights for row in rows)
    size = math.ceil(code_bits / 8) + FLOAT_BYTES * _float_numbers(network, {row.layer for row in rows})
    percent, others = float_tensors(network, options)
    unavailable = context.calibration.once(
        ("limits", context.reference, repr(options)), lambda: limits(context.traced, options)
    )
    return Report(rows, bits_mean, context.sensitivity, context.observed, percent, others, unavailable, size)


def _float_numbers(network: nn.Module, quantized: set[str]) -> int:
    """The number of float32 values in a quantized network besides the codes of the layers called `quantized`."""
    floats, skipped = 0, counters(network) | {f"{layer}.codes" for layer in quantized}
    for name, tensor in unique_state(network).items():
        # A symmetric grid has no zero-point to store.
        symmetric = name.removesuffix(".zero_point") in quantized and not tensor.any()
        if name not in skipped and not symmetric and name.removesuffix(".layer.weight") not in quantized:
            floats += tensor.numel()
    return floats
