"""The grids that values are rounded to."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class UniformGrid:
    """Whole-number codes from `low` to `high`, both included; a code stands for the value `code * scale`.

    Rounding is half to even, as in IEEE 754 and the course notebook.
    """

    low: int
    high: int

    @property
    def levels(self) -> int:
        """How many values the grid can take."""
        return self.high - self.low + 1

    def quantize(self, x: Tensor, scale: Tensor) -> Tensor:
        """Codes (float tensor of whole numbers, the shape of `x`); `scale` must broadcast against `x`."""
        return torch.clamp(torch.round(x / scale), self.low, self.high)

    def dequantize(self, codes: Tensor, scale: Tensor) -> Tensor:
        """The float values that `codes` stand for."""
        return codes * scale

    def fake_quantize(self, x: Tensor, scale: Tensor) -> Tensor:
        """`x` rounded to the grid and back: (clip to +-alpha, round) of Krishnamoorthi 2018, section 3."""
        return self.dequantize(self.quantize(x, scale), scale)


def weight_grid(bits: int, sign_bit: str) -> UniformGrid:
    """The symmetric grid of sign and magnitude; alpha, the clipping value, is its largest value.

    `extra`: `bits` bits of magnitude and a sign on top, 2 (2^bits - 1) + 1 levels (the notebook).
    `included`: the sign is one of the bits, 2 (2^(bits - 1) - 1) + 1 levels (the notebook's `w_bit - 1`).
    """
    magnitude = bits if sign_bit == "extra" else bits - 1
    high = 2**magnitude - 1
    return UniformGrid(-high, high)


def activation_grid(bits: int) -> UniformGrid:
    """The unsigned grid of activations behind a ReLU: 2^bits levels from 0 to alpha."""
    return UniformGrid(0, 2**bits - 1)


def stored_bits(bits: int, sign_bit: str) -> int:
    """Bits that one weight takes when stored, its sign included."""
    return bits + 1 if sign_bit == "extra" else bits
