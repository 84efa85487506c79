"""ModelOpt: `modelopt.torch.quantization.quantize` with integer formats.

For CNNs, the documentation of ModelOpt supports one format, `INT8_DEFAULT_CFG`: weights per channel, the inputs of
layers per tensor, both symmetric and calibrated by "max". The narrower widths here change its bits, which is a custom
format and experimental there. Its learned and Hessian-based methods are for the linear layers of language models. The
image stays float, as with the other tools. Batch norms are not folded.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bench.peers.common import batches, first_layer

CANNOT: dict[str, str] = {}
SETTINGS: dict[str, Any] = {"algorithm": "max", "batch_size": 64}


def quantize(model: nn.Module, images: Tensor, bits: int, act_bits: int | None) -> nn.Module:
    """A fake-quantized copy of the float `model`, calibrated on normalized `images` (N, 3, H, W)."""
    import modelopt.torch.quantization as mtq

    def calibrate(network: nn.Module) -> None:
        with torch.no_grad():
            for batch in batches(images, SETTINGS["batch_size"]):
                network(batch)

    network = mtq.quantize(copy.deepcopy(model).eval(), integers(bits, act_bits), calibrate)
    first_layer(network).input_quantizer.disable()
    return network.eval()


def integers(bits: int, act_bits: int | None) -> dict[str, Any]:
    """`INT8_DEFAULT_CFG` with other widths."""
    inputs = {"cfg": {"num_bits": act_bits, "axis": None}} if act_bits else {"enable": False}
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": 0}},
            {"quantizer_name": "*input_quantizer", **inputs},
        ],
        "algorithm": SETTINGS["algorithm"],
    }
