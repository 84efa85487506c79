"""A quantized network for the ONNX exporter: every weight and every quantizer is one node with a name of ours.

The exporter would store weights as floats. These nodes keep their place until `nodes.py` replaces them by integer codes
and the operators that decode them.
"""

import copy

import torch
from torch import Tensor, nn

from ptq_exp.export.formats import DecodedLayer
from ptq_exp.export.onnx.names import QUANTIZER, WEIGHT
from ptq_exp.quantization.layers import ActivationQuantizer, QuantizedLayer, quantized_layers
from ptq_exp.quantization.modules import replace_module


class _Quantizer(nn.Module):
    """Stands for an `ActivationQuantizer`. The shape stays the same."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(QUANTIZER, (x,), {"name": self.name}, dtype=x.dtype, shape=x.shape)


class _Layer(DecodedLayer):
    """A layer whose weights are one node."""

    def __init__(self, name: str, layer: QuantizedLayer):
        super().__init__(layer)
        self.name = name

    @property
    def weight(self) -> Tensor:
        return torch.onnx.ops.symbolic(WEIGHT, (), {"name": self.name}, dtype=torch.float32, shape=self.shape)


def with_placeholders(network: nn.Module) -> nn.Module:
    """A copy of `network` on the CPU whose weights and quantizers are single nodes, named as their modules.

    With channels last, the exporter would write `as_strided` behind a pooling layer: five operators and a slow Gather.
    """
    network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    for name, layer in quantized_layers(network).items():
        replace_module(network, name, _Layer(name, layer))
    for name, module in list(network.named_modules()):
        if isinstance(module, ActivationQuantizer):
            replace_module(network, name, _Quantizer(name))
    return network
