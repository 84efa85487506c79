"""What quantization did to every layer, and what the quantized network weighs."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ptq_exp.quantization.activations import Observation
from ptq_exp.quantization.layer_report import LayerReport
from ptq_exp.quantization.layers import QuantizedLayer
from ptq_exp.quantization.modules import unique_state
from ptq_exp.quantization.sparsity import percent_zero

FLOAT_BYTES = 4
IMAGES = 16  # of the calibration images, for the outputs' SQNR


@dataclass(frozen=True)
class Report:
    """The per-layer table and the totals."""

    layers: list[LayerReport]
    bits_mean: float  # stored bits a quantized weight, sign included, over all quantized weights
    sensitivity: dict[str, dict[float, float]] | None  # of mixed precision: layer -> bits -> divergence in nats
    activations: dict[str, Observation]  # the layers whose input is quantized, as calibrated
    size_bytes: int  # packed codes and scales, and everything else (batch norm, biases, the rest) in float32


def layer_report(name: str, layer: QuantizedLayer, weight: Tensor, bits: float, output_db: float) -> LayerReport:
    """The row of `layer`, whose float weights were `weight`."""
    low, high = layer.ends()
    alpha = torch.maximum(high, -low)
    beyond = 1e-6 * (high - low)  # scale times level is not the range's end to the last bit
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
    )


def sqnr_db(signal: Tensor, quantized: Tensor) -> float:
    """Signal to quantization noise ratio in dB; infinite where nothing was lost."""
    # In double precision: the square of a large weight is beyond single.
    noise, signal_norm = (torch.linalg.vector_norm(x.double()).item() for x in (signal - quantized, signal))
    if noise == 0:
        return math.inf
    return 20 * math.log10(signal_norm / noise) if signal_norm > 0 else -math.inf


@torch.no_grad()
def layer_outputs(network: nn.Module, names: list[str], images: Tensor) -> dict[str, Tensor]:
    """Outputs of those of the modules called `names` that run, on the first of the normalized `images`; of several
    calls one after the other. Vectors."""
    found: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        # A copy: a ReLU that works in place comes next.
        return lambda _, __, output: found.setdefault(name, []).append(output.clone())

    handles = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    network(images[:IMAGES])
    for handle in handles:
        handle.remove()
    return {name: torch.cat([x.flatten() for x in several]) for name, several in found.items()}


def make_report(
    model: nn.Module,
    rows: list[LayerReport],
    sensitivity: dict[str, dict[float, float]] | None = None,
    activations: dict[str, Observation] | None = None,
) -> Report:
    """Totals of a quantized `model` whose layers are described by `rows`."""
    weights = sum(row.weights for row in rows)
    code_bits = sum(row.weights * row.stored_bits for row in rows)
    floats = 0
    for name, tensor in unique_state(model).items():
        # A symmetric grid has no zero-point to store.
        replaced = name.endswith((".codes", "num_batches_tracked")) or (
            name.endswith(".zero_point") and not tensor.any()
        )
        if not replaced and name.removesuffix(".layer.weight") not in {row.layer for row in rows}:
            floats += tensor.numel()
    size = math.ceil(code_bits / 8) + FLOAT_BYTES * floats
    return Report(rows, code_bits / weights, sensitivity, activations or {}, size)
