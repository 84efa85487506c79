"""The modules that a quantized network is made of."""

import torch
from torch import Tensor, nn

from ptq_exp.quantization.grids import UniformGrid, activation_grid


class ActivationQuantizer(nn.Module):
    """Fake-quantizes a layer's input: unsigned, clipped to [0, alpha], 2^bits levels. Keeps the shape."""

    alpha: Tensor

    def __init__(self, bits: int, alpha: float):
        super().__init__()
        self.grid = activation_grid(bits)
        self.register_buffer("alpha", torch.tensor(alpha))

    def forward(self, x: Tensor) -> Tensor:
        return self.grid.fake_quantize(x, self.alpha / self.grid.high)


class QuantizedLayer(nn.Module):
    """A convolution or linear layer whose weights lie on a grid, with an optional quantizer of its input.

    `codes` (int32, the shape of the weights) and `scale` (one, or one for each output channel, shaped to
    broadcast) are the weights' stored form; the wrapped layer holds the same weights as floats, so that
    evaluation costs what it costs the float network.
    """

    codes: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear, grid: UniformGrid, alpha: Tensor):
        super().__init__()
        self.layer, self.grid = layer, grid
        self.activation: ActivationQuantizer | None = None
        weight = layer.weight.detach()
        scale = (alpha / grid.high).to(weight).view(-1, *[1] * (weight.dim() - 1))
        self.register_buffer("scale", scale)
        self.register_buffer("codes", torch.empty_like(weight, dtype=torch.int32))
        self.set_codes(grid.quantize(weight, scale))

    def set_codes(self, codes: Tensor) -> None:
        """Use `codes` (whole numbers on the grid, the shape of the weights) as the weights."""
        self.codes.copy_(codes)
        self.layer.weight.data.copy_(self.grid.dequantize(codes.to(self.scale.dtype), self.scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x if self.activation is None else self.activation(x))
