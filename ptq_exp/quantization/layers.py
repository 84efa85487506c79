"""The modules of a quantized network."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ptq_exp.base.machine import triton_works
from ptq_exp.networks.graph import Wrapper, alone
from ptq_exp.quantization.grids import Grid, UniformGrid


def round_within(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Round half to even and clamp to `low` and `high`. The gradient is that of the identity (Bengio, Leonard &
    Courville 2013) where the rounded value is not clamped."""
    codes: Tensor = _RoundWithin.apply(x, low, high)
    return codes


def _rounded(x: Tensor, low: Any, high: Any) -> tuple[Tensor, Tensor]:
    """The codes of `x`, and where they are not clamped."""
    rounded = torch.round(x)
    codes = torch.clamp(rounded, low, high)
    return codes, codes == rounded


class _RoundWithin(torch.autograd.Function):
    """The gradient of `torch.clamp` at both ends is 1 up to torch 2.14, and 0 or 1/2 since. With few levels, many
    weights lie there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        codes, inside = _rounded(x, low, high)
        ctx.save_for_backward(inside)
        return codes

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None


def random_mask(x: Tensor, share: float) -> Tensor:
    """A tensor like `x` that is 1 for `share` of the elements and else 0, on the CPU to the nearest of 254 shares."""
    if x.device.type != "cpu":
        return (torch.rand_like(x) < share).to(x.dtype)
    # Eight elements per random number, because the CPU draws them on one thread.
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    below = min(max(round(256 * share), 1), 255)  # 256 is no value of a byte
    return (words.view(torch.uint8).as_strided(x.shape, torch.empty_like(x).stride()) < below).to(x.dtype)


class ActivationQuantizer(nn.Module):
    """Fake-quantizes activations to 2^bits levels up to `alpha`. The shape stays the same.

    The codes begin at `low`, which is minus the zero-point: 0 for tensors without negative values, -2^(bits-1) in two's
    complement, whose lowest level is one step below -alpha, or any other.

    `drop` is the share of elements that stay unquantized during block reconstruction (QDrop, Wei et al. 2022), and 0
    otherwise. The gradient with respect to alpha is that of learned step sizes (Esser et al. 2020).
    """

    alpha: Tensor

    def __init__(self, bits: int, alpha: float, low: int = 0):
        super().__init__()
        self.bits, self.drop = bits, 0.0
        self.grid = UniformGrid(low, low + 2**bits - 1)
        self.register_buffer("alpha", torch.tensor(float(alpha)))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self._infer(x)
        quantized: Tensor = _FakeQuantize.apply(x, self.scale, self.grid.low, self.grid.high, self.drop)
        return quantized

    @property
    def scale(self) -> Tensor:
        """The distance between two levels."""
        return self.alpha / self.grid.high if self.grid.high else self.alpha

    def _infer(self, x: Tensor) -> Tensor:
        """The same without a gradient, in as few passes over memory as possible."""
        dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
        simple = dense and self.grid.high and x.dtype == self.alpha.dtype == torch.float32
        simple = simple and type(x) is Tensor  # not a fake one
        if simple and triton_works(x.device, _try_kernel):
            return _fake_quantize(x, self.alpha, self.grid.low, self.grid.high)
        scale = self.scale  # in place after the division, since allocation costs more than the arithmetic
        return torch.div(x, scale).round_().clamp_(self.grid.low, self.grid.high).mul_(scale)


class _FakeQuantize(torch.autograd.Function):
    """Fake quantization with the gradients of learned step sizes (Esser et al. 2020, equations 3 and 5).

    The operations of autograd take twice the time. `drop` is the share of elements that stay as they are.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int, drop: float) -> Tensor:
        position = x / scale
        codes, whole = _rounded(position, low, high)
        inside = whole.to(x.dtype)  # arithmetic with numbers is faster than a choice by booleans
        # The derivative with respect to the scale is the code outside the range, and the rounding error inside.
        slope = torch.addcmul(codes, position, inside, value=-1)
        out = codes.mul_(scale)
        if drop:
            dropped = random_mask(x, drop)
            out = torch.lerp(out, x, dropped)
            inside = torch.maximum(inside, dropped)
            slope.addcmul_(slope, dropped, value=-1)
        ctx.save_for_backward(inside, slope)
        ctx.shape = scale.shape
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        inside, slope = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        for_x = gradient * inside if wanted[0] else None
        for_scale = (gradient * slope).sum().reshape(ctx.shape) if wanted[1] else None
        return for_x, for_scale, None, None, None


def _fake_quantize(x: Tensor, alpha: Tensor, low: int, high: int) -> Tensor:
    from ptq_exp.quantization.activation_kernel import (
        fake_quantize,
    )  # needs Triton, which is not available on every machine

    return fake_quantize(x, alpha, low, high)


def _try_kernel(device: torch.device) -> None:
    _fake_quantize(torch.ones(1, device=device), torch.ones((), device=device), 0, 1)


class AroundLayer(nn.Module):
    """Stands for the convolution or linear layer called `layer`, and has its attributes, such as `in_features`."""

    layer: nn.Conv2d | nn.Linear

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "layer":
                raise
            return getattr(self.layer, name)

    def with_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """What `layer` computes of `x` with another weight."""
        if not alone(self.layer, nn.Linear) and not alone(self.layer, nn.Conv2d):
            result: Tensor = functional_call(self.layer, {"weight": weight}, (x,))
            return result
        bias = self.layer._parameters["bias"]
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, bias)
        return self.layer._conv_forward(x, weight, bias)


class QuantizedLayer(AroundLayer):
    """A convolution or linear layer whose weights lie on a grid, with an optional quantizer of its input.

    `codes` (int32, the shape of the weights), `scale` and `zero_point` (one value, or one per output channel, shaped
    to broadcast) are the stored form of the weights. The wrapped layer holds the same weights as floats, so that
    evaluation is as fast as for the float network. `soft` replaces the weights while they are learned. `zeros` (bool,
    the shape of the weights) marks the weights that stay exactly zero during learning; None means no weights.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    zeros: Tensor | None

    def __init__(
        self, layer: nn.Conv2d | nn.Linear, grid: Grid, scale: Tensor, zero_point: Tensor, bits: float,
        zeros: Tensor | None = None,
    ):  # fmt: skip
        super().__init__()
        self.layer, self.grid, self.bits = layer, grid, bits
        self.activation: ActivationQuantizer | None = None
        self.soft: Tensor | None = None
        # A new parameter, so that another module that shares the old one keeps the float values.
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=layer.weight.requires_grad)
        weight = layer.weight.detach()
        self.register_buffer("scale", _per_group(scale, weight))
        self.register_buffer("zero_point", _per_group(zero_point, weight))
        self.register_buffer("codes", torch.empty_like(weight, dtype=torch.int32))
        self.register_buffer("zeros", zeros, persistent=False)
        self.set_codes(grid.quantize(weight, self.scale, self.zero_point))

    @property
    def weight(self) -> Tensor:
        """The weights in use, for networks that read them without calling the layer."""
        return self.layer.weight if self.soft is None else self.soft

    @property
    def bias(self) -> Tensor | None:
        """The bias of the wrapped layer."""
        return self.layer.bias

    def ends(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest value of the grid, in the shape of `scale`."""
        codes = (torch.full_like(self.scale, code) for code in (self.grid.low, self.grid.high))
        low, high = (self.grid.dequantize(code, self.scale, self.zero_point) for code in codes)
        return low, high

    def set_codes(self, codes: Tensor) -> None:
        """Set the weights to `codes` (integers on the grid, the shape of the weights)."""
        self.codes.copy_(codes)
        self.layer.weight.data.copy_(self.grid.dequantize(codes.to(self.scale.dtype), self.scale, self.zero_point))

    def forward(self, input: Tensor) -> Tensor:  # called `input`, as in the layers that this class replaces
        x = input if self.activation is None else self.activation(input)
        return self.layer(x) if self.soft is None else self.with_weight(x, self.soft)


def _per_group(values: Tensor, weight: Tensor) -> Tensor:
    return values.detach().to(weight).reshape(-1, *[1] * (weight.dim() - 1)).clone()


class QuantizedOperation(Wrapper):
    """An operation of tensors, such as an addition, with quantized operands.

    `operands` are the quantizers of its first tensors, in the order of the arguments; None leaves a tensor as it is.
    """

    def __init__(self, operation: nn.Module, operands: Sequence[ActivationQuantizer | None]):
        super().__init__()
        self.operation = operation
        self.operands = nn.ModuleList([nn.Identity() if operand is None else operand for operand in operands])

    def forward(self, *args: Any, **named: Any) -> Any:
        left, copies = iter(self.operands), []

        def quantized(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            copies.append((x, next(left, _unchanged)(x)))
            return copies[-1][1]

        args = tuple(map(quantized, args))
        result = self.operation(*args, **{name: quantized(x) for name, x in named.items()})
        for x, copy in copies:
            if result is copy and copy is not x:  # an operation in place, whose operand others may read
                return x.copy_(result)
        return result


def _unchanged(x: Tensor) -> Tensor:
    return x


# torch.fx must not trace into these. A trace then has the same nodes as that of the float network.
OPAQUE = (ActivationQuantizer, QuantizedLayer, QuantizedOperation)


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantized layers of `model` by name, in the network's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}
