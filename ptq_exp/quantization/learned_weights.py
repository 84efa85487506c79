"""Weights during learning: either between two levels (rounded up or down), or free before rounding."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptq_exp.quantization.grids import UniformGrid
from ptq_exp.quantization.layers import QuantizedLayer, round_within

ZETA, GAMMA = 1.1, -0.1  # the rectified sigmoid is stretched to (-0.1, 1.1), so that it reaches 0 and 1


class PackedWeights(nn.Module):
    """The weights of several layers as one matrix with one row per scale, padded to the longest row.

    On a GPU, the launch dominates the cost of an operation on such small layers. One operation on the matrix processes
    all layers.
    """

    def __init__(self, layers: list[QuantizedLayer]):
        super().__init__()
        assert all(isinstance(layer.grid, UniformGrid) for layer in layers)
        self.layers = layers
        self.rows = [layer.scale.numel() for layer in layers]
        self.columns = [layer.codes.numel() // layer.scale.numel() for layer in layers]
        self.low = self._per_row([layer.grid.low for layer in layers])
        self.high = self._per_row([layer.grid.high for layer in layers])
        self.scale = torch.cat([layer.scale.reshape(-1, 1) for layer in layers])
        self.zero_point = torch.cat([layer.zero_point.reshape(-1, 1) for layer in layers])
        self.zeros = self._zeros()

    def _per_row(self, values: list[int]) -> Tensor:
        device = self.layers[0].scale.device
        repeated = [torch.full((rows, 1), float(v)) for rows, v in zip(self.rows, values, strict=True)]
        return torch.cat(repeated).to(device)

    def _zeros(self) -> Tensor | None:
        """A matrix that marks the weights that stay zero, or None if there are none."""
        found = [layer.zeros for layer in self.layers]
        if all(zeros is None for zeros in found):
            return None
        pairs = zip(found, self.layers, strict=True)
        return self.pack([torch.zeros_like(layer.codes, dtype=torch.bool) if z is None else z for z, layer in pairs])

    def pack(self, tensors: list[Tensor]) -> Tensor:
        """Pack one tensor per layer, in the shape of its weights, into a matrix. The padding is zero."""
        width = max(self.columns)
        shaped = [t.reshape(rows, -1) for t, rows in zip(tensors, self.rows, strict=True)]
        return torch.cat([F.pad(t, (0, width - t.shape[1])) for t in shaped])

    def unpack(self, matrix: Tensor) -> list[Tensor]:
        """The inverse of `pack`."""
        parts = zip(matrix.split(self.rows), self.columns, self.layers, strict=True)
        return [part[:, :columns].reshape(layer.codes.shape) for part, columns, layer in parts]

    def use(self, codes: Tensor, scale: Tensor, zero_point: Tensor) -> None:
        """Set the layers' weights to (codes - zero_point) * scale, differentiably."""
        for layer, weight in zip(self.layers, self.unpack((codes - zero_point) * scale), strict=True):
            layer.soft = weight

    def settle(self, codes: Tensor) -> None:
        """Store the final `codes` in the layers."""
        for layer, own in zip(self.layers, self.unpack(codes.detach()), strict=True):
            layer.soft = None
            layer.set_codes(own)


class SoftRounding(PackedWeights):
    """Weights between their two neighbouring codes: floor(w / scale + zero_point) + h(v), h the rectified sigmoid.

    Nagel et al. 2020, "Up or Down? Adaptive Rounding", equations 22 to 24.
    """

    def __init__(self, layers: list[QuantizedLayer], weights: list[Tensor]):
        super().__init__(layers)
        position = self.pack(weights) / self.scale + self.zero_point
        self.floor = torch.floor(position)
        rest = (position - self.floor).clamp(1e-4, 1 - 1e-4)
        self.v = nn.Parameter(-torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1))

    def share(self) -> Tensor:
        """h(v): 0 where a weight is rounded down, 1 where up."""
        share = torch.clamp(torch.sigmoid(self.v) * (ZETA - GAMMA) + GAMMA, 0, 1)
        return share if self.zeros is None else share.masked_fill(self.zeros, 0.0)

    def forward(self, beta: Tensor) -> Tensor:
        """Use the current weights. Returns the rounding regularizer, the sum of 1 - |2h - 1|^beta."""
        share = self.share()
        self.use(torch.clamp(self.floor + share, self.low, self.high), self.scale, self.zero_point)
        return (1 - (2 * share - 1).abs().pow(beta)).sum()

    def finish(self) -> None:
        """Round each weight up where h is at least one half, else down."""
        self.settle(torch.clamp(self.floor + (self.share() >= 0.5), self.low, self.high))


class LearnedWeights(PackedWeights):
    """Unrounded codes and scales, learned through the rounding (Esser et al. 2020).

    Non-integer zero-points are also learned (Bhalgat et al. 2020). Integer ones stay fixed, so that zero is a level.
    """

    def __init__(self, layers: list[QuantizedLayer]):
        super().__init__(layers)
        packed = self.pack([layer.layer.weight.detach() for layer in layers])
        self.position = nn.Parameter(packed / self.scale + self.zero_point)
        self.log_scale = nn.Parameter(self.scale.log())
        self.offset = nn.Parameter(self.zero_point.clone())
        self.movable = (self.zero_point != self.zero_point.round()).to(self.zero_point)

    def moved(self) -> Tensor:
        """The current zero-points."""
        return self.zero_point + self.movable * (self.offset - self.zero_point)

    def _codes(self) -> Tensor:
        """Codes on the grid. Weights that stay zero get the zero-point, which is a fixed integer for them."""
        codes = round_within(self.position, self.low, self.high)
        return codes if self.zeros is None else torch.where(self.zeros, self.zero_point, codes)

    def forward(self) -> None:
        """Use the current weights."""
        self.use(self._codes(), self.log_scale.exp(), self.moved())

    def finish(self) -> None:
        """Store scales, zero-points and rounded weights in the layers."""
        scales, zero_points = self.log_scale.detach().exp(), self.moved().detach()
        parts = zip(self.layers, scales.split(self.rows), zero_points.split(self.rows), strict=True)
        for layer, scale, zero_point in parts:
            layer.scale.copy_(scale.view_as(layer.scale))
            layer.zero_point.copy_(zero_point.view_as(layer.zero_point))
        self.settle(self._codes())
