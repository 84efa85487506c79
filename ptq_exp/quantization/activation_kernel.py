"""Fake quantization of activations in one pass over memory; PyTorch's own operations take four."""

# ruff: noqa: N803 - compile-time constants are in capitals, as is usual in Triton

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
# If it is added to a float32 of magnitude below 2^22, no bit is left for the fraction: the sum is rounded half to even.
WHOLE = tl.constexpr(1.5 * 2**23)


@triton.jit(do_not_specialize=["count"])
def _fake_quantize(x_ptr, alpha_ptr, out_ptr, count, low, high, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    scale = tl.div_rn(tl.load(alpha_ptr), high)
    steps = tl.div_rn(tl.load(x_ptr + at, mask=inside, other=0.0), scale)
    steps = tl.where(steps < low, low, tl.where(steps > high, high, steps))  # not min and max, which lose a NaN
    tl.store(out_ptr + at, ((steps + WHOLE) - WHOLE) * scale, mask=inside)


def fake_quantize(x: Tensor, alpha: Tensor, low: int, high: int) -> Tensor:
    """`x` (float32, dense) rounded to the codes `low` to `high` (not 0, below 2^22) times alpha / high.

    The result is bit for bit that of PyTorch's division, rounding, clamping and multiplication.
    """
    out = torch.empty_like(x)
    if x.numel():
        _fake_quantize[(triton.cdiv(x.numel(), BLOCK),)](x, alpha, out, x.numel(), float(low), float(high), BLOCK=BLOCK)
    return out
