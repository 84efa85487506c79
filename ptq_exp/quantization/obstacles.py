"""Which tensor of a quantized network changes the predictions most if it is the only one that is quantized."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ptq_exp.quantization.allocation import divergence, log_probabilities
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.layers import QuantizedLayer, quantized_layers
from ptq_exp.quantization.modules import replace_module
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.quantize import Quantized, quantize

IMAGES = 512  # of the calibration images


def obstacle(model: nn.Module, options: QuantConfig, bits: int, calibration: Calibration) -> str:
    """A sentence that names the tensor which, quantized alone, changes the predictions on calibration images most."""
    found = divergences(quantize(model, options, bits, calibration), calibration.images[:IMAGES])
    name = max(found, key=lambda tensor: found[tensor])
    total = sum(found.values())
    share = f", {100 * found[name] / total:.0f} % of the sum over all tensors" if total > 0 else ""
    return (
        f"Quantized alone, the {name} change the predictions on calibration images most: by {found[name]:.2g} "
        f"nats{share}."
    )


@torch.no_grad()
def divergences(quantized: Quantized, images: Tensor) -> dict[str, float]:
    """For the weights and the input of every layer, the mean Kullback-Leibler divergence (nats) from the float
    network's predictions on normalized `images` if only they are quantized."""
    wanted = log_probabilities(quantized.reference, images)
    return {
        tensor: divergence(network, images, wanted)
        for name, layer in quantized_layers(quantized.network).items()
        for tensor, network in _alone(quantized.reference, name, layer)
    }


def _alone(reference: nn.Module, name: str, layer: QuantizedLayer) -> Iterator[tuple[str, nn.Module]]:
    """The float network with only the weights, then with only the input of one layer quantized."""
    weights = copy.deepcopy(layer)
    quantizer, weights.activation = weights.activation, None
    network = copy.deepcopy(reference)
    replace_module(network, name, weights)
    yield f"weights of {name}", network
    if quantizer is not None:
        network = copy.deepcopy(reference)
        module = network.get_submodule(name)
        module.register_forward_pre_hook(lambda _, inputs: (quantizer(inputs[0]), *inputs[1:]))
        yield f"activations before {name}", network
