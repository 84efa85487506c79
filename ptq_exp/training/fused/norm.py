"""What the kernels share: reading a normalized activation or a gradient, and finishing a batch norm's sums.

A batch norm keeps one row of `coefficients` for each of the constants below, C floats in a row. The forward pass
stores raw convolution outputs y alone; whoever reads one applies scale and shift on the way. The backward pass stores
the gradients g of a batch norm's output alone; the gradient of its input is GRADIENT * g + RAW * y + CONSTANT.
"""

# ruff: noqa: N803 - compile-time constants are written in capitals, as Triton does

import triton
import triton.language as tl

ROWS = 7  # scale, shift, mean, 1 / standard deviation; then the three factors of the backward pass


@triton.jit
def read_input(
    x_ptr, skip_ptr, in_ptr, skip_in_ptr, image, row, column, channel, inside,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, TRANSFORM: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    """The activations at (image, row, column, channel) in float32, zero where not `inside`.

    With `TRANSFORM` they are max(0, batch norm of x + skip); else x as it is stored.
    """
    offset = ((image * H + row) * W + column) * C + channel
    value = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    if TRANSFORM:
        value = value * tl.load(in_ptr + channel) + tl.load(in_ptr + C + channel)
        if SKIP == 1:  # the numbers are those of plan.py
            value += tl.load(skip_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        elif SKIP == 2:  # every second pixel of a map with half the channels, zeros around these
            edge: tl.constexpr = C // 4
            source = ((image * (2 * H) + 2 * row) * (2 * W) + 2 * column) * (C // 2) + channel - edge
            there = inside & (channel >= edge) & (channel < C - edge)
            value += tl.load(skip_ptr + source, mask=there, other=0.0).to(tl.float32)
        elif SKIP == 3:
            other = tl.load(skip_ptr + offset, mask=inside, other=0.0).to(tl.float32)
            value += other * tl.load(skip_in_ptr + channel) + tl.load(skip_in_ptr + C + channel)
        # Not a maximum: a NaN has to survive, or a diverged training would look alive.
        value = tl.where(inside & ~(value <= 0.0), value, 0.0)
    return value


@triton.jit
def read_gradient(
    g_ptr, y_ptr, norm_ptr, image, row, column, channel, inside,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """The gradient of a convolution's raw output at these places in float32, zero where not `inside`."""
    offset = ((image * H + row) * W + column) * C + channel
    g = tl.load(g_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    factor, raw = tl.load(norm_ptr + 4 * C + channel), tl.load(norm_ptr + 5 * C + channel)
    return tl.where(inside, factor * g + raw * y + tl.load(norm_ptr + 6 * C + channel), 0.0)


@triton.jit
def is_last(counter_ptr, programs):
    """Whether all other programs of this launch have stored their partial sums.

    The one that says yes adds them up in a fixed order: no launch of its own, and the same result every time.
    """
    tl.debug_barrier()  # every thread's stores come before the one thread's release below
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel") == programs - 1
    if last:
        tl.store(counter_ptr, 0)  # ready for the next step
    return last


@triton.jit
def add_up(partial_ptr, rows, C: tl.constexpr, CHUNK: tl.constexpr):
    """The sum over the rows of a (rows, C) array."""
    index, channel = tl.arange(0, CHUNK), tl.arange(0, C)
    total = tl.zeros([C], tl.float32)
    for start in range(0, rows, CHUNK):
        row = start + index[:, None]
        # .cg: other multiprocessors wrote these a moment ago, the level 1 cache must not answer.
        block = tl.load(partial_ptr + row * C + channel[None, :], mask=row < rows, other=0.0, cache_modifier=".cg")
        total += tl.sum(block, 0)
    return total


@triton.jit
def finish_statistics(
    partial_ptr, rows, count, gamma_ptr, beta_ptr, running_mean_ptr, running_var_ptr, tracked_ptr, norm_ptr,
    momentum, eps, C: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Mean and variance from the partial sums (2, rows, C), the scale and shift they give, and what
    `nn.BatchNorm2d` does to its buffers."""
    channel = tl.arange(0, C)
    mean = add_up(partial_ptr, rows, C, CHUNK).to(tl.float64) / count
    squares = add_up(partial_ptr + rows * C, rows, C, CHUNK).to(tl.float64) / count
    variance = squares - mean * mean  # in double precision, since the difference may cancel
    variance = tl.where(variance < 0.0, 0.0, variance).to(tl.float32)
    mean = mean.to(tl.float32)
    inverse = 1.0 / tl.sqrt(variance + eps)
    scale = tl.load(gamma_ptr + channel) * inverse
    tl.store(norm_ptr + channel, scale)
    tl.store(norm_ptr + C + channel, tl.load(beta_ptr + channel) - mean * scale)
    tl.store(norm_ptr + 2 * C + channel, mean)
    tl.store(norm_ptr + 3 * C + channel, inverse)
    old = tl.load(running_mean_ptr + channel)
    tl.store(running_mean_ptr + channel, old + momentum * (mean - old))
    old = tl.load(running_var_ptr + channel)
    unbiased = variance * (count / (count - 1.0))
    tl.store(running_var_ptr + channel, old + momentum * (unbiased - old))
    tl.store(tracked_ptr, tl.load(tracked_ptr) + 1)


@triton.jit
def finish_gradient(
    sums_ptr, products_ptr, rows, count, norm_ptr, grad_gamma_ptr, grad_beta_ptr, C: tl.constexpr, CHUNK: tl.constexpr
):
    """The gradients of gamma and beta from the partial sums of g and of g * normalized y, and the three factors."""
    channel = tl.arange(0, C)
    beta, gamma = add_up(sums_ptr, rows, C, CHUNK), add_up(products_ptr, rows, C, CHUNK)
    tl.store(grad_beta_ptr + channel, beta)
    tl.store(grad_gamma_ptr + channel, gamma)
    scale, mean = tl.load(norm_ptr + channel), tl.load(norm_ptr + 2 * C + channel)
    raw = -scale * tl.load(norm_ptr + 3 * C + channel) * gamma / count
    tl.store(norm_ptr + 4 * C + channel, scale)
    tl.store(norm_ptr + 5 * C + channel, raw)
    tl.store(norm_ptr + 6 * C + channel, -scale * beta / count - raw * mean)
