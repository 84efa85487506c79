"""Brevitas: batch-norm folding, graph equalization, GPTQ and bias correction, with the code of its own example.

The steps and their order are those of `brevitas_examples.imagenet_classification.ptq`: 20 iterations of graph
equalization, calibration, GPTQ, bias correction. Its table of best configurations uses them for layerwise quantization
with float scales per channel. Weights are symmetric per channel. Activations are asymmetric per tensor, with the
example's percentile of 99.999, and quantized at the input of each layer (its backend `layerwise`), except for the
image.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bench.peers.common import first_layer

CANNOT: dict[str, str] = {}
SETTINGS: dict[str, Any] = {
    "equalization_iterations": 20, "gptq": True, "bias_correction": True, "weights": "mse", "act_percentile": 99.999,
    "batch_size": 64,
}  # fmt: skip


def quantize(model: nn.Module, images: Tensor, bits: int, act_bits: int | None) -> nn.Module:
    """A fake-quantized copy of the float `model`, calibrated on normalized `images` (N, 3, H, W)."""
    from brevitas.graph.quantize import layerwise_quantize, preprocess_for_quantize
    from brevitas_examples.imagenet_classification.ptq import ptq_common

    folded = preprocess_for_quantize(copy.deepcopy(model).eval(), equalize_iters=SETTINGS["equalization_iterations"])
    first = first_layer(folded)
    layers = ptq_common.create_quant_maps(
        torch.float32, bias_bit_width=None, weight_bit_width=bits, weight_param_method=SETTINGS["weights"],
        weight_scale_type="float_scale", weight_quant_type="sym", weight_quant_granularity="per_channel",
        weight_narrow_range=False, weight_quant_format="int", act_quant_format="int", act_bit_width=act_bits,
        act_scale_type="float_scale", act_scale_computation_type="static", act_param_method="stats",
        act_quant_type="asym", act_quant_granularity="per_tensor", act_quant_percentile=SETTINGS["act_percentile"],
        device=images.device,
    )[1]  # fmt: skip
    kind, options = layers[nn.Conv2d]
    input_quant = options["input_quant"]
    layers[nn.Conv2d] = kind, options | {"input_quant": lambda module: None if module is first else input_quant}
    network = layerwise_quantize(folded, compute_layer_map=layers)
    loader = [(batch, None) for batch in images.split(SETTINGS["batch_size"])]
    with torch.no_grad():
        network(loader[0][0])  # initializes the scales
    if act_bits:
        ptq_common.calibrate(loader, network)
    ptq_common.apply_gptq(loader, network, create_weight_orig=True)
    ptq_common.apply_bias_correction(loader, network)
    return network.eval()
