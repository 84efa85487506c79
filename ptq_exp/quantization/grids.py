"""The grids that values are rounded to: integer codes and the values that they represent."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ptq_exp.quantization.options import TERNARY

SYMMETRIC, ASYMMETRIC, FLOAT_ZERO_POINT = "symmetric", "asymmetric", "float_zero_point"
POWER_OF_TWO, APOT = "power_of_two", "apot"
GRIDS = (SYMMETRIC, ASYMMETRIC, FLOAT_ZERO_POINT, POWER_OF_TWO, APOT)
TWO_SIDED = (ASYMMETRIC, FLOAT_ZERO_POINT)  # any two ends; no sign is stored


@dataclass(frozen=True)
class UniformGrid:
    """Codes from `low` to `high`, both included. A code represents the value `(code - zero_point) * scale`.

    Rounding is half to even, as in IEEE 754 and the course notebook. With a non-integer zero-point, zero lies between
    two levels.
    """

    low: int
    high: int

    @property
    def levels(self) -> int:
        """How many values the grid can take."""
        return self.high - self.low + 1

    def quantize(self, x: Tensor, scale: Tensor, zero_point: Tensor | float = 0.0) -> Tensor:
        """Codes (float tensor of integers, the shape of `x`); `scale` must broadcast against `x`."""
        whole = torch.round(torch.as_tensor(zero_point, dtype=x.dtype, device=x.device))
        return torch.clamp(torch.round(x / scale + (zero_point - whole)) + whole, self.low, self.high)

    def dequantize(self, codes: Tensor, scale: Tensor, zero_point: Tensor | float = 0.0) -> Tensor:
        """The float values that `codes` stand for."""
        return (codes - zero_point) * scale

    def fake_quantize(self, x: Tensor, scale: Tensor, zero_point: Tensor | float = 0.0) -> Tensor:
        """`x` rounded to the grid and back (Krishnamoorthi 2018, section 2)."""
        return self.dequantize(self.quantize(x, scale, zero_point), scale, zero_point)


@dataclass(frozen=True)
class LevelGrid:
    """Arbitrary ascending levels in [-1, 1]. Code k represents the value `values[k] * scale`.

    Ties go to the lower level. The zero-point is ignored.
    """

    values: tuple[float, ...]

    low = 0

    @property
    def high(self) -> int:
        """The largest code."""
        return len(self.values) - 1

    @property
    def levels(self) -> int:
        """How many values the grid can take."""
        return len(self.values)

    def quantize(self, x: Tensor, scale: Tensor, zero_point: Tensor | float = 0.0) -> Tensor:
        """Codes (float tensor of integers, the shape of `x`)."""
        values = torch.tensor(self.values, dtype=x.dtype, device=x.device)
        return torch.bucketize((x / scale).contiguous(), (values[1:] + values[:-1]) / 2).to(x.dtype)

    def dequantize(self, codes: Tensor, scale: Tensor, zero_point: Tensor | float = 0.0) -> Tensor:
        """The float values that `codes` stand for."""
        values = torch.tensor(self.values, dtype=scale.dtype, device=scale.device)
        return values[codes.long()] * scale

    def fake_quantize(self, x: Tensor, scale: Tensor, zero_point: Tensor | float = 0.0) -> Tensor:
        """`x` rounded to the nearest level."""
        return self.dequantize(self.quantize(x, scale), scale)


Grid = UniformGrid | LevelGrid


def code_width(levels: int) -> int:
    """The bits that codes of so many levels need."""
    return max(1, math.ceil(math.log2(levels)))


def weight_grid(bits: float, sign_bit: str, kind: str = SYMMETRIC) -> Grid:
    """The grid of weights with `bits` bits, an integer or `TERNARY`.

    `symmetric` and `power_of_two` are signed, with a level at zero. With `extra` the sign is an additional bit, giving
    2 (2^bits - 1) + 1 levels (the notebook). With `included` it is one of the bits, giving 2 (2^(bits - 1) - 1) + 1
    levels. `asymmetric` and `float_zero_point` have 2^bits levels (`TERNARY`: 3) between any two values. For `apot` see
    `additive_powers_of_two`.
    """
    if kind in TWO_SIDED:
        return UniformGrid(0, int(2**bits) - 1)
    assert bits != TERNARY, "three levels with a sign are quant.bits=2, quant.sign_bit=included"
    magnitude = int(bits) if sign_bit == "extra" else int(bits) - 1
    if kind == APOT:
        return LevelGrid(additive_powers_of_two(magnitude))
    high = 2**magnitude - 1
    return UniformGrid(-high, high)


def additive_powers_of_two(bits: int) -> tuple[float, ...]:
    """Signed levels whose magnitudes have `bits` bits: sums of powers of two, scaled so that the largest is 1.

    With two bits per term, term i takes zero or one of 2^-i, 2^-(i+n), 2^-(i+2n) for n terms. An odd bit is one
    more term of zero or 2^-2n, and the third powers move below it. No power occurs twice, so all sums differ
    (Li, Dong & Wang 2020, "Additive Powers-of-Two Quantization", equation 4 and, for odd bits, the authors' code).
    """
    terms, odd = bits // 2, bits % 2
    choices = [[0.0] + [2.0 ** -(i + terms * j + (odd if j == 2 else 0)) for j in range(3)] for i in range(terms)]
    if odd:
        choices.append([0.0, 2.0 ** -(2 * terms)])
    sums = {sum(combination) for combination in itertools.product(*choices)}
    largest = max(sums)
    return tuple(sorted({sign * value / largest for value in sums for sign in (-1.0, 1.0)}))


def parameters(grid: Grid, kind: str, low: Tensor, high: Tensor, zeros: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scale and zero-point (both of the shape of `low`) that map the values from `low` to `high` to `grid`.

    Symmetric grids use the larger magnitude of the two. A power-of-two scale is the one with the nearest exponent.
    Where `zeros` (bool, the shape of `low`) is true, zero is a level on every grid.
    """
    if kind == FLOAT_ZERO_POINT:
        scale = _positive((high - low) / (grid.levels - 1))
        zero_point = -low / scale
        if zeros is None or not zeros.any():
            return scale, zero_point
        with_zero = parameters(grid, ASYMMETRIC, low, high)
        return torch.where(zeros, with_zero[0], scale), torch.where(zeros, with_zero[1], zero_point)
    if kind == ASYMMETRIC:
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)  # zero stays a level
        scale = _positive((high - low) / (grid.levels - 1))
        return scale, torch.round(-low / scale).clamp(grid.low, grid.high)
    alpha = torch.maximum(high, -low)
    scale = _positive(alpha if isinstance(grid, LevelGrid) else alpha / grid.high)
    if kind == POWER_OF_TWO:
        scale = torch.exp2(torch.round(torch.log2(scale)))
    return scale, torch.zeros_like(scale)


def _positive(scale: Tensor) -> Tensor:
    """Replace zero scales by one. A group of equal weights has no range, so any scale represents it exactly."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def activation_grid(bits: int, signed: bool = False) -> UniformGrid:
    """2^bits levels: from 0 upwards after a ReLU, or in two's complement if values have both signs."""
    return UniformGrid(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else UniformGrid(0, 2**bits - 1)


def stored_bits(bits: float, sign_bit: str, kind: str = SYMMETRIC) -> float:
    """Stored bits per weight, including the sign."""
    return bits + 1 if sign_bit == "extra" and kind not in TWO_SIDED else bits
