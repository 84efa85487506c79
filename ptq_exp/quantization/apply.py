"""Quantize a network: find the ranges, round the weights, calibrate the activations, report on every layer."""

import copy

import torch
from torch import Tensor, nn

from ptq_exp.errors import UserError
from ptq_exp.quantization.grids import stored_bits, weight_grid
from ptq_exp.quantization.layers import ActivationQuantizer, QuantizedLayer
from ptq_exp.quantization.ranges import find_alphas
from ptq_exp.quantization.report import Report, layer_report, make_report
from ptq_exp.quantization.spec import QuantConfig


def quantize(model: nn.Module, config: QuantConfig, bits: int, calibration: Tensor) -> tuple[nn.Module, Report]:
    """A quantized copy of the float `model` at `bits` bits, and the report on its layers.

    `calibration` holds normalized images (N, 3, H, W) on the model's device. The float model is left as it is.
    Raises `UserError` where there is nothing to quantize.
    """
    weights = {name: layer.weight.detach() for name, layer in target_layers(model).items()}
    if not weights:
        raise UserError("The network has no convolution, so there is nothing to quantize.")
    alphas = find_alphas(weights, config.alpha_rule, config.alpha_multiplier, config.granularity)
    grid = weight_grid(bits, config.sign_bit)
    quantized = copy.deepcopy(model).eval()
    layers = {name: QuantizedLayer(layer, grid, alphas[name]) for name, layer in target_layers(quantized).items()}
    for name, layer in layers.items():
        quantized.set_submodule(name, layer)
    if config.act_bits is not None:
        _quantize_activations(model, layers, config.act_bits, config.act_alpha, calibration)
    rows = [
        layer_report(name, layer, weights[name], alphas[name], stored_bits(bits, config.sign_bit))
        for name, layer in layers.items()
    ]
    return quantized, make_report(quantized, rows)


def target_layers(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The layers whose weights are quantized, by name, in the network's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


def _quantize_activations(
    model: nn.Module, layers: dict[str, QuantizedLayer], bits: int, alpha: float | None, calibration: Tensor
) -> None:
    """Quantize the input of every layer but the first, whose input is the image itself and stays float.

    A null `alpha` is calibrated: the largest input that the layer sees in the float network.
    """
    largest = _largest_inputs(model, list(layers), calibration) if alpha is None else {}
    for name in list(layers)[1:]:
        limit = largest.get(name, 0.0) if alpha is None else alpha
        # A layer whose inputs are all zero in calibration keeps a grid of some width: scale 0 would divide by 0.
        layers[name].activation = ActivationQuantizer(bits, limit if limit > 0 else 1.0).to(calibration.device)


@torch.inference_mode()
def _largest_inputs(model: nn.Module, names: list[str], images: Tensor) -> dict[str, float]:
    """The largest value that reaches each layer of the float `model` on `images`."""
    largest: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def watch(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            seen = inputs[0].amax()
            largest[name] = torch.maximum(largest[name], seen) if name in largest else seen

        handles.append(model.get_submodule(name).register_forward_pre_hook(watch))
    try:
        for batch in images.split(256):
            model.eval()(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: value.item() for name, value in largest.items()}
