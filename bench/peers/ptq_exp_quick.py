"""This project's `quant=quick`, which takes about as long as the other tools. Its 512 calibration images are the first
of theirs."""

import dataclasses
from typing import Any

from torch import Tensor, nn

from bench.harness import preset
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.quantize import quantize as quantized

CANNOT: dict[str, str] = {}
SETTINGS: dict[str, Any] = {"preset": "quick", **dataclasses.asdict(preset("quick").reconstruction)}


def quantize(model: nn.Module, images: Tensor, bits: int, act_bits: int | None) -> nn.Module:
    """A quantized copy of the float `model`, calibrated on normalized `images` (N, 3, H, W)."""
    options = preset(SETTINGS["preset"], act_bits=act_bits)
    return quantized(model, options, bits, Calibration(images[: options.calibration_images])).network
