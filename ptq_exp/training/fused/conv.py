"""Convolutions as matrix products over the pixels of channels-last maps, with batch norm on either side.

A product's rows are output pixels, its columns output channels; its inner dimension runs over taps and input channels,
tap by tap, `BK` at a time. Programs take tiles of `BM` pixels in turn.
"""

# ruff: noqa: N803, N806 - compile-time constants are written in capitals, as Triton does

import triton
import triton.language as tl

from ptq_exp.training.fused.norm import finish_gradient, finish_statistics, is_last, read_gradient, read_input


@triton.jit
def multiply(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b: bf16 operands, or float32 ones in the given input precision."""
    if PRECISION == "bf16":
        total = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), total)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def _places(step, C: tl.constexpr, BK: tl.constexpr):
    """Tap and channel of the inner dimension's part `step`."""
    if BK <= C:  # one tap: the same for all, which simplifies what is computed from it
        tap = tl.zeros([BK], tl.int32) + step * BK // C
        channel = step * BK % C + tl.arange(0, BK)
    else:
        k = step * BK + tl.arange(0, BK)
        tap, channel = k // C, k % C
    return tap, channel


@triton.jit(do_not_specialize=["images"])
def conv_forward(
    x_ptr, skip_ptr, act_ptr, in_ptr, skip_in_ptr, w_ptr, y_ptr, ws_ptr, ys_ptr, partial_ptr, counter_ptr,
    gamma_ptr, beta_ptr, mean_ptr, var_ptr, tracked_ptr, norm_ptr,
    gamma_s_ptr, beta_s_ptr, mean_s_ptr, var_s_ptr, tracked_s_ptr, norm_s_ptr,
    images, w_out, w_in, w_tap, ws_out, ws_in, momentum, eps, momentum_s, eps_s,
    H: tl.constexpr, W: tl.constexpr, CIN: tl.constexpr, COUT: tl.constexpr, STRIDE: tl.constexpr,
    TRANSFORM: tl.constexpr, SKIP: tl.constexpr, WRITE: tl.constexpr, SHORTCUT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """y = conv3x3(input), with the statistics of the batch norm behind it.

    The input is x, or with `TRANSFORM` max(0, batch norm of x + skip), which `WRITE` also keeps in `act`. `SHORTCUT`
    computes the block's 1x1 convolution ys of the same input and its statistics on the way.
    """
    OH: tl.constexpr = H // STRIDE
    OW: tl.constexpr = W // STRIDE
    pixels = images * OH * OW
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    sums, squares = tl.zeros([BN], tl.float32), tl.zeros([BN], tl.float32)
    sums_s, squares_s = tl.zeros([BN], tl.float32), tl.zeros([BN], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(pixels, BM), tl.num_programs(0)):
        m = tile * BM + tl.arange(0, BM)
        valid = (m < pixels)[:, None]
        image, row, column = (m // (OH * OW))[:, None], (m // OW % OH)[:, None], (m % OW)[:, None]
        total = tl.zeros([BM, BN], tl.float32)
        for step in tl.range(0, (9 * CIN + BK - 1) // BK, num_stages=STAGES):
            tap, channel = _places(step, CIN, BK)
            r, c = row * STRIDE + (tap // 3 - 1)[None, :], column * STRIDE + (tap % 3 - 1)[None, :]
            inside = valid & (tap < 9)[None, :] & (r >= 0) & (r < H) & (c >= 0) & (c < W)
            a = read_input(
                x_ptr, skip_ptr, in_ptr, skip_in_ptr, image, r, c, channel[None, :], inside, H, W, CIN, TRANSFORM, SKIP
            )
            place = n[None, :] * w_out + (channel * w_in + tap * w_tap)[:, None]
            total = multiply(a, tl.load(w_ptr + place, mask=(tap < 9)[:, None], other=0.0), total, PRECISION)
        offset = m[:, None] * COUT + n[None, :]
        y = total.to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + offset, y, mask=valid)
        y = y.to(tl.float32)  # the statistics are those of what is stored; rows past the end hold zeros
        sums += tl.sum(y, 0)
        squares += tl.sum(y * y, 0)
        if WRITE:
            channel = tl.arange(0, CIN)
            for part in range(STRIDE * STRIDE):  # the input's pixels that belong to this tile
                r, c = row * STRIDE + part // STRIDE, column * STRIDE + part % STRIDE
                a = read_input(
                    x_ptr, skip_ptr, in_ptr, skip_in_ptr, image, r, c, channel[None, :], valid, H, W, CIN,
                    TRANSFORM, SKIP,
                )  # fmt: skip
                place = ((image * H + r) * W + c) * CIN + channel[None, :]
                tl.store(act_ptr + place, a.to(act_ptr.dtype.element_ty), mask=valid & (tl.program_id(1) + r * 0 == 0))
        if SHORTCUT:
            channel = tl.arange(0, CIN)
            a = read_input(
                x_ptr, skip_ptr, in_ptr, skip_in_ptr, image, row * STRIDE, column * STRIDE, channel[None, :], valid,
                H, W, CIN, TRANSFORM, SKIP,
            )  # fmt: skip
            ws = tl.load(ws_ptr + n[None, :] * ws_out + (channel * ws_in)[:, None])
            ys = multiply(a, ws, tl.zeros([BM, BN], tl.float32), PRECISION).to(y_ptr.dtype.element_ty)
            tl.store(ys_ptr + offset, ys, mask=valid)
            ys = ys.to(tl.float32)
            sums_s += tl.sum(ys, 0)
            squares_s += tl.sum(ys * ys, 0)
    rows = tl.num_programs(0)
    place = partial_ptr + tl.program_id(0) * COUT + n
    tl.store(place, sums)
    tl.store(place + rows * COUT, squares)
    if SHORTCUT:
        tl.store(place + 2 * rows * COUT, sums_s)
        tl.store(place + 3 * rows * COUT, squares_s)
    if is_last(counter_ptr, rows * tl.num_programs(1)):
        finish_statistics(
            partial_ptr, rows, pixels, gamma_ptr, beta_ptr, mean_ptr, var_ptr, tracked_ptr, norm_ptr, momentum, eps,
            COUT, CHUNK,
        )  # fmt: skip
        if SHORTCUT:
            finish_statistics(
                partial_ptr + 2 * rows * COUT, rows, pixels, gamma_s_ptr, beta_s_ptr, mean_s_ptr, var_s_ptr,
                tracked_s_ptr, norm_s_ptr, momentum_s, eps_s, COUT, CHUNK,
            )  # fmt: skip


@triton.jit(do_not_specialize=["images"])
def conv_backward(
    g_ptr, y_ptr, norm_ptr, w_ptr, skip_g_ptr, ys_ptr, norm_s_ptr, ws_ptr,
    act_ptr, y_in_ptr, norm_in_ptr, ys_in_ptr, norm_s_in_ptr, g_in_ptr, partial_ptr, counter_ptr,
    grad_gamma_ptr, grad_beta_ptr, grad_gamma_s_ptr, grad_beta_s_ptr,
    images, w_out, w_in, w_tap, ws_out, ws_in,
    H: tl.constexpr, W: tl.constexpr, CIN: tl.constexpr, COUT: tl.constexpr, STRIDE: tl.constexpr,
    FIRST: tl.constexpr, SKIP: tl.constexpr, SHORTCUT_IN: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """g_in, the gradient of what the ReLU before this convolution got, and its sums for the batch norm before that.

    `g`, `y` and `norm` belong to this convolution's own batch norm. To a block's `FIRST` convolution the gradient of
    the block's sum, `skip_g`, comes back through the shortcut as well, and the ReLU's output `act` is stored; for the
    second the ReLU's input is computed again from `y_in`. `SHORTCUT_IN`: the sum before had a batch norm on either
    branch. Rows are input pixels, the inner dimension runs over taps and output channels. With stride 2 a tile's
    pixels are all of one parity of row and column, which one, two or four of the taps reach; `BK` must be <= COUT.
    """
    OH: tl.constexpr = H // STRIDE
    OW: tl.constexpr = W // STRIDE
    pixels = images * OH * OW  # of one parity
    tiles = tl.cdiv(pixels, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    mean, inverse = tl.load(norm_in_ptr + 2 * CIN + n)[None, :], tl.load(norm_in_ptr + 3 * CIN + n)[None, :]
    sums, products, products_s = tl.zeros([BN], tl.float32), tl.zeros([BN], tl.float32), tl.zeros([BN], tl.float32)
    for tile in range(tl.program_id(0), tiles * STRIDE * STRIDE, tl.num_programs(0)):
        part = tile // tiles if STRIDE == 2 else 0
        down, right = part // 2, part % 2
        m = tile % tiles * BM + tl.arange(0, BM)
        valid = (m < pixels)[:, None]
        image, row, column = (m // (OH * OW))[:, None], (m // OW % OH)[:, None], (m % OW)[:, None]
        offset = ((image * H + row * STRIDE + down) * W + column * STRIDE + right) * CIN + n[None, :]
        total = tl.zeros([BM, BN], tl.float32)
        if STRIDE == 2:  # noqa: SIM108 - Triton compiles one branch
            steps = (1 + down) * (1 + right) * (COUT // BK)
        else:
            steps = (9 * COUT + BK - 1) // BK
        for step in tl.range(0, steps, num_stages=STAGES):
            tap, channel = _places(step, COUT, BK)
            if STRIDE == 2:  # tap 1 of three where the pixel is even, taps 0 and 2 where it is odd
                kh = tl.where(down == 0, 1, tap // (1 + right) * 2)
                kw = tl.where(right == 0, 1, tap % (1 + right) * 2)
                r, c = row + ((down + 1 - kh) // 2)[None, :], column + ((right + 1 - kw) // 2)[None, :]
            else:
                kh, kw = tap // 3, tap % 3
                r, c = row + (1 - kh)[None, :], column + (1 - kw)[None, :]
            inside = valid & (kh < 3)[None, :] & (r >= 0) & (r < OH) & (c >= 0) & (c < OW)
            a = read_gradient(g_ptr, y_ptr, norm_ptr, image, r, c, channel[None, :], inside, OH, OW, COUT)
            place = (channel * w_out + (kh * 3 + kw) * w_tap)[:, None] + n[None, :] * w_in
            total = multiply(a, tl.load(w_ptr + place, mask=(kh < 3)[:, None], other=0.0), total, PRECISION)
        y_in = tl.load(y_in_ptr + offset, mask=valid, other=0.0).to(tl.float32)
        if FIRST:
            even = valid & (part + row * 0 == 0)
            if SKIP == 1:
                total += tl.load(skip_g_ptr + offset, mask=valid, other=0.0).to(tl.float32)
            elif SKIP == 2:
                place = ((image * OH + row) * OW + column) * COUT + n[None, :] + (COUT - CIN) // 2
                total += tl.load(skip_g_ptr + place, mask=even, other=0.0).to(tl.float32)
            elif SKIP == 3:  # noqa: SIM102 - the outer condition is the compiler's, the inner one the program's
                if part == 0:
                    channel = tl.arange(0, COUT)
                    a = read_gradient(
                        skip_g_ptr, ys_ptr, norm_s_ptr, image, row, column, channel[None, :], even, OH, OW, COUT
                    )
                    ws = tl.load(ws_ptr + channel[:, None] * ws_out + n[None, :] * ws_in)
                    total = multiply(a, ws, total, PRECISION)
            alive = tl.load(act_ptr + offset, mask=valid, other=0.0) > 0.0
        else:
            alive = y_in * tl.load(norm_in_ptr + n)[None, :] + tl.load(norm_in_ptr + CIN + n)[None, :] > 0.0
        stored = tl.where(alive & valid, total, 0.0).to(g_in_ptr.dtype.element_ty)
        tl.store(g_in_ptr + offset, stored, mask=valid)
        g = stored.to(tl.float32)
        sums += tl.sum(g, 0)
        products += tl.sum(g * ((y_in - mean) * inverse), 0)
        if SHORTCUT_IN:
            other = tl.load(ys_in_ptr + offset, mask=valid, other=0.0).to(tl.float32)
            mean_s, inverse_s = tl.load(norm_s_in_ptr + 2 * CIN + n), tl.load(norm_s_in_ptr + 3 * CIN + n)
            products_s += tl.sum(g * ((other - mean_s[None, :]) * inverse_s[None, :]), 0)
    rows = tl.num_programs(0)
    place = partial_ptr + tl.program_id(0) * CIN + n
    tl.store(place, sums)
    tl.store(place + rows * CIN, products)
    if SHORTCUT_IN:
        tl.store(place + 2 * rows * CIN, products_s)
    if is_last(counter_ptr, rows * tl.num_programs(1)):
        second, count = partial_ptr + rows * CIN, images * (H * W)
        finish_gradient(partial_ptr, second, rows, count, norm_in_ptr, grad_gamma_ptr, grad_beta_ptr, CIN, CHUNK)
        if SHORTCUT_IN:
            finish_gradient(
                partial_ptr, second + rows * CIN, rows, count, norm_s_in_ptr, grad_gamma_s_ptr, grad_beta_s_ptr,
                CIN, CHUNK,
            )  # fmt: skip
