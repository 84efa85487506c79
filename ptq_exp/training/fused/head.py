"""The end of the network: the last block's output, its mean over the pixels, the linear layer; and the way back."""

# ruff: noqa: N803 - compile-time constants are written in capitals, as Triton does

import triton
import triton.language as tl

from ptq_exp.training.fused.norm import finish_gradient, is_last, read_input


@triton.jit
def head_forward(
    y_ptr, norm_ptr, skip_ptr, norm_s_ptr, act_ptr, w_ptr, b_ptr, pooled_ptr, logits_ptr,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, SKIP: tl.constexpr,
    CLASSES: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Logits of one image a program."""
    image = tl.program_id(0)
    m, n, k = tl.arange(0, BP)[:, None], tl.arange(0, C), tl.arange(0, BC)
    a = read_input(
        y_ptr, skip_ptr, norm_ptr, norm_s_ptr, image, m // W, m % W, n[None, :], m < H * W, H, W, C, True, SKIP
    )
    tl.store(act_ptr + (image * (H * W) + m) * C + n[None, :], a.to(act_ptr.dtype.element_ty), mask=m < H * W)
    pooled = tl.sum(a, 0) / (H * W)
    tl.store(pooled_ptr + image * C + n, pooled)
    w = tl.load(w_ptr + k[:, None] * C + n[None, :], mask=(k < CLASSES)[:, None], other=0.0)
    bias = tl.load(b_ptr + k, mask=k < CLASSES, other=0.0)
    tl.store(logits_ptr + image * CLASSES + k, tl.sum(w * pooled[None, :], 1) + bias, mask=k < CLASSES)


@triton.jit
def head_backward(
    grad_ptr, w_ptr, act_ptr, y_ptr, norm_ptr, ys_ptr, norm_s_ptr, g_ptr, partial_ptr, counter_ptr,
    grad_gamma_ptr, grad_beta_ptr, grad_gamma_s_ptr, grad_beta_s_ptr,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, SHORTCUT: tl.constexpr,
    CLASSES: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """g of the last block's sum from the logits' gradient, and its sums for the batch norms there."""
    image, images = tl.program_id(0), tl.num_programs(0)
    m, n, k = tl.arange(0, BP)[:, None], tl.arange(0, C), tl.arange(0, BC)
    grad = tl.load(grad_ptr + image * CLASSES + k, mask=k < CLASSES, other=0.0)
    w = tl.load(w_ptr + k[:, None] * C + n[None, :], mask=(k < CLASSES)[:, None], other=0.0)
    pooled = tl.sum(w * grad[:, None], 0) / (H * W)
    offset = (image * (H * W) + m) * C + n[None, :]
    inside = m < H * W
    alive = tl.load(act_ptr + offset, mask=inside, other=0.0) > 0.0
    stored = tl.where(alive & inside, pooled[None, :], 0.0).to(g_ptr.dtype.element_ty)
    tl.store(g_ptr + offset, stored, mask=inside)
    g = stored.to(tl.float32)
    y = tl.load(y_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    mean, inverse = tl.load(norm_ptr + 2 * C + n), tl.load(norm_ptr + 3 * C + n)
    place = partial_ptr + image * C + n
    tl.store(place, tl.sum(g, 0))
    tl.store(place + images * C, tl.sum(g * ((y - mean[None, :]) * inverse[None, :]), 0))
    if SHORTCUT:
        y = tl.load(ys_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        mean, inverse = tl.load(norm_s_ptr + 2 * C + n), tl.load(norm_s_ptr + 3 * C + n)
        tl.store(place + 2 * images * C, tl.sum(g * ((y - mean[None, :]) * inverse[None, :]), 0))
    if is_last(counter_ptr, images):
        second, count = partial_ptr + images * C, images * (H * W)
        finish_gradient(partial_ptr, second, images, count, norm_ptr, grad_gamma_ptr, grad_beta_ptr, C, CHUNK)
        if SHORTCUT:
            finish_gradient(
                partial_ptr, second + images * C, images, count, norm_s_ptr, grad_gamma_s_ptr, grad_beta_s_ptr, C, CHUNK
            )
