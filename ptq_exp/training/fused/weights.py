"""Gradients of convolution weights: products over all pixels, split among programs and added up in a fixed order."""

# ruff: noqa: N803, N806 - compile-time constants are written in capitals, as Triton does

import triton
import triton.language as tl

from ptq_exp.training.fused.conv import multiply
from ptq_exp.training.fused.norm import read_gradient, read_input


@triton.jit
def _columns(
    x_ptr, in_ptr, k, image, row, column, valid,
    H: tl.constexpr, W: tl.constexpr, CIN: tl.constexpr, STRIDE: tl.constexpr, TAPS: tl.constexpr,
    TRANSFORM: tl.constexpr,
):  # fmt: skip
    """The input under taps and channels `k`, one row for each output pixel."""
    tap, channel = k // CIN, k % CIN
    r, c = row[:, None] * STRIDE, column[:, None] * STRIDE
    if TAPS == 9:
        r, c = r + (tap // 3 - 1)[None, :], c + (tap % 3 - 1)[None, :]
    inside = valid[:, None] & (tap < TAPS)[None, :] & (r >= 0) & (r < H) & (c >= 0) & (c < W)
    return read_input(
        x_ptr, x_ptr, in_ptr, in_ptr, image[:, None], r, c, channel[None, :], inside, H, W, CIN, TRANSFORM, 0
    )


@triton.jit(do_not_specialize=["images", "share"])
def weight_gradient(
    x_ptr, in_ptr, g_ptr, y_ptr, norm_ptr, partial_ptr, images, share,
    H: tl.constexpr, W: tl.constexpr, CIN: tl.constexpr, COUT: tl.constexpr, STRIDE: tl.constexpr, TAPS: tl.constexpr,
    TRANSFORM: tl.constexpr, PRECISION: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, TAIL: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Partial sums (programs, COUT, TAPS * CIN): each program takes `share` pixels, a multiple of `BP`.

    Its columns are `BN` of the taps and input channels, and `TAIL` more: nine taps are no power of two.
    """
    OH: tl.constexpr = H // STRIDE
    OW: tl.constexpr = W // STRIDE
    pixels = images * OH * OW
    n = tl.arange(0, COUT)
    k = tl.program_id(1) * (BN + TAIL) + tl.arange(0, BN)
    total = tl.zeros([COUT, BN], tl.float32)
    if TAIL:
        k_tail = tl.program_id(1) * (BN + TAIL) + BN + tl.arange(0, TAIL)
        total_tail = tl.zeros([COUT, TAIL], tl.float32)
    first = tl.program_id(0) * share
    for start in tl.range(first, first + share, BP, num_stages=STAGES):
        m = start + tl.arange(0, BP)
        valid = m < pixels
        image, row, column = m // (OH * OW), m // OW % OH, m % OW
        dy = read_gradient(
            g_ptr, y_ptr, norm_ptr, image[:, None], row[:, None], column[:, None], n[None, :], valid[:, None],
            OH, OW, COUT,
        )  # fmt: skip
        dy = tl.trans(dy)
        x = _columns(x_ptr, in_ptr, k, image, row, column, valid, H, W, CIN, STRIDE, TAPS, TRANSFORM)
        total = multiply(dy, x, total, PRECISION)
        if TAIL:
            x = _columns(x_ptr, in_ptr, k_tail, image, row, column, valid, H, W, CIN, STRIDE, TAPS, TRANSFORM)
            total_tail = multiply(dy, x, total_tail, PRECISION)
    place = partial_ptr + (tl.program_id(0) * COUT + n[:, None]) * (TAPS * CIN)
    tl.store(place + k[None, :], total, mask=(k < TAPS * CIN)[None, :])
    if TAIL:
        tl.store(place + k_tail[None, :], total_tail, mask=(k_tail < TAPS * CIN)[None, :])


@triton.jit
def add_up_weights(partial_ptr, grad_ptr, table_ptr, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """Add up all layers' partial sums in one launch.

    A program's line of `table` (5 numbers): where its layer's partial sums begin, how many there are, how many weights
    each holds, the program's first weight among these, where the layer's gradient begins.
    """
    line = table_ptr + tl.program_id(0) * 5
    begin, count, size = tl.load(line), tl.load(line + 1), tl.load(line + 2)
    index = tl.load(line + 3) + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, CHUNK):
        row = start + tl.arange(0, CHUNK)
        inside = (row < count)[:, None] & (index < size)[None, :]
        block = tl.load(partial_ptr + begin + row[:, None] * size + index[None, :], mask=inside, other=0.0)
        total += tl.sum(block, 0)
    tl.store(grad_ptr + tl.load(line + 4) + index, total, mask=index < size)
