"""NNCF on OpenVINO's backend: `nncf.quantize` with the preset MIXED and the full (slow) bias correction.

That is the setting that its documentation recommends for accuracy, and only this backend and ONNX have it. Weights are
symmetric per channel, activations asymmetric per tensor. Below 8 bits, only the target device NPU has 4-bit types, so
W4A8 and W4A4 ask for that device. NNCF places the activation quantizers itself, the one of the image included. All
calibration images are used. OpenVINO runs the result on the CPU, in float32 where it is not 8-bit.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# `nncf.quantize` always quantizes activations too. `nncf.compress_weights`, which does not, has modes of 8 and 4 bits
# and leaves convolutions at 8 ("Convolution ops are always kept in backup mode"), seen with INT4_SYM.
CANNOT: dict[str, str] = {
    "W4": "convolutions stay at 8 bits", "W3": "no 3-bit weights", "W2": "no 2-bit weights",
}  # fmt: skip
SETTINGS: dict[str, Any] = {"preset": "MIXED", "fast_bias_correction": False, "batch_size": 64}


def quantize(model: nn.Module, images: Tensor, bits: int, act_bits: int | None) -> Callable[[Tensor], Tensor]:
    """The float `model` quantized and compiled for the CPU, calibrated on normalized `images` (N, 3, H, W)."""
    import openvino

    network = quantized(model, images, bits, act_bits)
    compiled = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda batch: torch.from_numpy(compiled(batch.cpu().contiguous().numpy())[0]).to(batch.device)


def quantized(model: nn.Module, images: Tensor, bits: int, act_bits: int | None) -> Any:
    """The float `model` as a quantized OpenVINO model. Seven bits are NNCF's `OverflowFix.ENABLE`, for any CPU."""
    import nncf
    import openvino
    from nncf.quantization import advanced_parameters as advanced

    converted = openvino.convert_model(copy.deepcopy(model).cpu().eval(), example_input=images[:1].cpu())
    loader = [batch.numpy() for batch in images.cpu().contiguous().split(SETTINGS["batch_size"])]
    narrow = bits < 7 or (act_bits or 8) < 8
    options = advanced.AdvancedQuantizationParameters()
    if narrow:
        options.weights_quantization_params = advanced.QuantizationParameters(num_bits=bits)
        options.activations_quantization_params = advanced.QuantizationParameters(num_bits=act_bits)
    elif bits == 7:
        options.overflow_fix = advanced.OverflowFix.ENABLE
    return nncf.quantize(
        converted, nncf.Dataset(loader), preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.NPU if narrow else nncf.TargetDevice.ANY, subset_size=len(loader),
        fast_bias_correction=SETTINGS["fast_bias_correction"], advanced_parameters=options,
    )  # fmt: skip
