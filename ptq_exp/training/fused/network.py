"""A CIFAR ResNet's training pass as some sixty launches: one per convolution forward, two backward, and a few more."""

from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor, nn

from ptq_exp.networks.resnet import PadShortcut, ResNet
from ptq_exp.training.fused.conv import conv_backward, conv_forward
from ptq_exp.training.fused.head import head_backward, head_forward
from ptq_exp.training.fused.norm import ROWS
from ptq_exp.training.fused.plan import SKIP_CONV, SKIP_NONE, SKIP_PAD, SKIP_SAME, Block, Layer, Pass, Sum
from ptq_exp.training.fused.tuning import backward_tile, forward_tile, weight_share
from ptq_exp.training.fused.weights import add_up_weights, weight_gradient

DOT = {"fp32": "tf32x3", "tf32": "tf32", "bf16": "bf16"}  # tf32x3: three products that together round like float32
BLOCK, CHUNK = 128, 32  # of the last addition of weight gradients
ELEMENTS = 4096  # of partial sums loaded at a time


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all networks: torch hands out the same 32 streams again and again, the capturing one's too."""
    return torch.cuda.Stream(device)


class FusedResNet:
    """The training pass of a `ResNet`: normalized images (N, 3, H, W) to logits (N, classes), with gradients.

    The parameters and buffers are the module's own. `height` and `width` are those of the images.
    """

    def __init__(self, model: ResNet, precision: str, height: int, width: int):
        self.model, self.precision, self.dot = model, precision, DOT[precision]
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.device = model.linear.weight.device
        self.layers: list[Layer] = []
        self.image_size = torch.Size((height, width))
        self.stem = self._layer(model.conv1, model.bn1, height, width)
        self.blocks: list[Block] = []
        size = (height, width)
        for stage in (model.layer1, model.layer2, model.layer3):
            for block in stage:
                self.blocks.append(self._block(block, *size))
                size = self.blocks[-1].second.out
        self.parameters = [p for layer in self.layers for p in (layer.conv.weight, layer.norm.weight, layer.norm.bias)]
        self.parameters += [model.linear.weight, model.linear.bias]
        self.size = 0
        for layer in self.layers:
            layer.weight_at, layer.gamma_at = self.size, self.size + layer.conv.weight.numel()
            layer.beta_at = layer.gamma_at + layer.norm.num_features
            self.size = -(-(layer.beta_at + layer.norm.num_features) // 16) * 16
        self.counter = torch.zeros(1, dtype=torch.int32, device=self.device)
        self.tables: dict[int, tuple[Tensor, list[int], int]] = {}
        self.side = _side_stream(self.device) if self.device.type == "cuda" else None

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of normalized `images`; `backward` on what follows fills the parameters' gradients."""
        if images.shape[2:] != self.image_size or not self.model.training:
            logits: Tensor = self.model(images)  # the kernels are made for one size, and for training
            return logits
        return _Apply.apply(self, images, *self.parameters)

    def _layer(self, conv: Any, norm: Any, height: int, width: int) -> Layer:
        self.layers.append(Layer(conv, norm, height, width, len(self.layers)))
        return self.layers[-1]

    def _block(self, block: Any, height: int, width: int) -> Block:
        first = self._layer(block.conv1, block.bn1, height, width)
        second = self._layer(block.conv2, block.bn2, *first.out)
        if isinstance(block.shortcut, nn.Sequential):
            shortcut = self._layer(block.shortcut[0], block.shortcut[1], height, width)
            return Block(first, second, shortcut, SKIP_CONV)
        return Block(first, second, None, SKIP_PAD if isinstance(block.shortcut, PadShortcut) else SKIP_SAME)

    def forward(self, images: Tensor) -> tuple[Tensor, Pass]:
        """Logits, and what `backward` needs."""
        images = images.contiguous(memory_format=torch.channels_last)
        count = len(images)
        norms = torch.empty(sum(ROWS * layer.norm.num_features for layer in self.layers), device=self.device)
        rows = norms.split([ROWS * layer.norm.num_features for layer in self.layers])
        # The partial sums of one launch: four of at most 2048 rows, or a row for each image from the head.
        run = Pass(images, list(rows), torch.empty(4 * max(2048, count) * 64, device=self.device))
        y, _ = self._convolve(run, self.stem, Sum(images, self.stem), None, None)
        run.sums.append(Sum(y, self.stem))
        for block in self.blocks:
            before, first = run.sums[-1], block.first
            act = self._empty(count, first.height, first.width, first.conv.in_channels)
            middle, ys = self._convolve(run, first, before, act, block.shortcut)
            y, _ = self._convolve(run, block.second, Sum(middle, first), None, None)
            run.inputs.append(act)
            run.middle.append(middle)
            run.sums.append(Sum(y, block.second, act if ys is None else ys, block.shortcut, block.skip))
        return self._head(run), run

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _convolve(
        self, run: Pass, layer: Layer, before: Sum, act: Tensor | None, shortcut: Layer | None
    ) -> tuple[Tensor, Tensor | None]:
        """The layer's raw output on what comes before it, and its shortcut's."""
        conv, count, norms = layer.conv, len(run.images), run.norms
        shape = (count, *layer.out, conv.out_channels)
        y, ys = self._empty(*shape), self._empty(*shape) if shortcut else None
        tile = forward_tile(conv.in_channels, conv.out_channels, self.precision)
        programs = min(-(-y.numel() // conv.out_channels // tile.pixels), tile.programs)
        behind = shortcut or layer
        conv_forward[(programs, conv.out_channels // tile.columns)](
            before.y, before.other, act, norms[before.layer.index],
            norms[before.shortcut.index] if before.shortcut else None,
            conv.weight, y, behind.conv.weight, ys, run.partial, self.counter,
            *layer.state(), norms[layer.index], *behind.state(), norms[behind.index],
            count, *layer.strides, *behind.strides[:2], layer.norm.momentum, layer.norm.eps,
            behind.norm.momentum, behind.norm.eps,
            H=layer.height, W=layer.width, CIN=conv.in_channels, COUT=conv.out_channels, STRIDE=layer.stride,
            TRANSFORM=before.layer is not layer, SKIP=before.skip, WRITE=act is not None,
            SHORTCUT=shortcut is not None, PRECISION=self.dot,
            BM=tile.pixels, BN=tile.columns, BK=tile.inner, STAGES=tile.stages,
            CHUNK=ELEMENTS // conv.out_channels, num_warps=tile.warps,
        )  # fmt: skip
        return y, ys

    def _head(self, run: Pass) -> Tensor:
        last, linear, count = run.sums[-1], self.model.linear, len(run.images)
        _, height, width, channels = last.y.shape
        run.inputs.append(torch.empty_like(last.y))
        run.pooled = torch.empty(count, channels, device=self.device)
        logits = torch.empty(count, linear.out_features, device=self.device)
        head_forward[(count,)](
            last.y, run.norms[last.layer.index], last.other,
            run.norms[last.shortcut.index] if last.shortcut else None,
            run.inputs[-1], linear.weight, linear.bias, run.pooled, logits,
            H=height, W=width, C=channels, SKIP=last.skip, CLASSES=linear.out_features,
            BP=triton.next_power_of_2(height * width), BC=triton.next_power_of_2(linear.out_features),
        )  # fmt: skip
        return logits

    def backward(self, run: Pass, grad_logits: Tensor) -> list[Tensor]:
        """The gradients of `parameters`, given the logits'."""
        assert run.pooled is not None
        flat = torch.empty(self.size, device=self.device)
        table, begins, total = self._table(len(run.images))
        partial = torch.empty(total, device=self.device)
        g = self._head_backward(run, flat, grad_logits)
        for number in reversed(range(len(self.blocks))):
            block, act, middle, after = (
                self.blocks[number], run.inputs[number], run.middle[number], run.sums[number + 1]
            )  # fmt: skip
            first, second = Sum(middle, block.first), after
            self._weights(run, partial, begins, block.second, middle, block.first, g, second.y)
            if block.shortcut and after.other is not None:
                self._weights(run, partial, begins, block.shortcut, act, None, g, after.other)
            g_middle = self._input(run, flat, block.second, g, second.y, None, first, None, None)
            self._weights(run, partial, begins, block.first, act, None, g_middle, middle)
            g = self._input(run, flat, block.first, g_middle, middle, block, run.sums[number], g, act, after)
        self._weights(run, partial, begins, self.stem, run.images, None, g, run.sums[0].y)
        if self.side:
            torch.cuda.current_stream().wait_stream(self.side)
        add_up_weights[(len(table),)](partial, flat, table, BLOCK=BLOCK, CHUNK=CHUNK)
        grads = []
        for layer in self.layers:
            outputs, inputs, height, width = layer.conv.weight.shape
            weight = flat[layer.weight_at : layer.gamma_at].view(outputs, height, width, inputs).permute(0, 3, 1, 2)
            ends = layer.beta_at, layer.beta_at + outputs
            grads += [weight, flat[layer.gamma_at : ends[0]], flat[ends[0] : ends[1]]]
        return [*grads, grad_logits.t() @ run.pooled, grad_logits.sum(0)]

    def _head_backward(self, run: Pass, flat: Tensor, grad_logits: Tensor) -> Tensor:
        last, linear = run.sums[-1], self.model.linear
        _, height, width, channels = last.y.shape
        g, shortcut = torch.empty_like(last.y), last.shortcut or last.layer
        run.gradients.append(g)
        head_backward[(len(g),)](
            grad_logits.contiguous(), linear.weight, run.inputs[-1], last.y, run.norms[last.layer.index],
            last.other, run.norms[shortcut.index], g, run.partial, self.counter,
            flat[last.layer.gamma_at :], flat[last.layer.beta_at :], flat[shortcut.gamma_at :],
            flat[shortcut.beta_at :],
            H=height, W=width, C=channels, SHORTCUT=last.shortcut is not None, CLASSES=linear.out_features,
            BP=triton.next_power_of_2(height * width), BC=triton.next_power_of_2(linear.out_features),
            CHUNK=ELEMENTS // channels,
        )  # fmt: skip
        return g

    def _input(
        self, run: Pass, flat: Tensor, layer: Layer, g: Tensor, y: Tensor, block: Block | None, before: Sum,
        skip_g: Tensor | None, act: Tensor | None, after: Sum | None = None,
    ) -> Tensor:  # fmt: skip
        """The gradient of what the ReLU before `layer` got; `block`, if the layer is that block's first."""
        conv, norms, g_in = layer.conv, run.norms, torch.empty_like(before.y)
        run.gradients.append(g_in)
        tile = backward_tile(conv.in_channels, conv.out_channels, self.precision)
        programs = min(-(-g_in.numel() // conv.in_channels // tile.pixels), tile.programs)
        shortcut = block.shortcut if block and block.shortcut else layer
        other = before.shortcut or before.layer
        conv_backward[(programs, conv.in_channels // tile.columns)](
            g, y, norms[layer.index], conv.weight, skip_g, after.other if after else None, norms[shortcut.index],
            shortcut.conv.weight, act, before.y, norms[before.layer.index], before.other, norms[other.index], g_in,
            run.partial, self.counter, flat[before.layer.gamma_at :], flat[before.layer.beta_at :],
            flat[other.gamma_at :], flat[other.beta_at :],
            len(run.images), *layer.strides, *shortcut.strides[:2],
            H=layer.height, W=layer.width, CIN=conv.in_channels, COUT=conv.out_channels, STRIDE=layer.stride,
            FIRST=block is not None, SKIP=block.skip if block else SKIP_NONE, SHORTCUT_IN=before.shortcut is not None,
            PRECISION=self.dot, BM=tile.pixels, BN=tile.columns, BK=tile.inner, STAGES=tile.stages,
            CHUNK=ELEMENTS // conv.in_channels,
            num_warps=tile.warps,
        )  # fmt: skip
        return g_in

    def _weights(
        self, run: Pass, partial: Tensor, begins: list[int], layer: Layer, x: Tensor, before: Layer | None,
        g: Tensor, y: Tensor,
    ) -> None:  # fmt: skip
        """The layer's weight gradient's partial sums. Beside the rest: nothing but the last addition waits for it."""
        conv, taps = layer.conv, layer.conv.kernel_size[0] ** 2
        share, pixels, programs = self._split(layer, len(run.images))
        grid = programs, -(-taps * conv.in_channels // (share.columns + share.tail))
        if self.side:
            self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            weight_gradient[grid](
                x, run.norms[before.index] if before else None, g, y, run.norms[layer.index],
                partial[begins[layer.index] :], len(run.images), pixels,
                H=layer.height, W=layer.width, CIN=conv.in_channels, COUT=conv.out_channels, STRIDE=layer.stride,
                TAPS=taps, TRANSFORM=before is not None, PRECISION=self.dot, BP=share.pixels, BN=share.columns,
                TAIL=share.tail, STAGES=share.stages, num_warps=share.warps,
            )  # fmt: skip

    def _split(self, layer: Layer, images: int) -> tuple[Any, int, int]:
        """A layer's share, the pixels of each program and how many programs there are."""
        conv = layer.conv
        share = weight_share(conv.in_channels, conv.out_channels, conv.kernel_size[0] ** 2, self.precision)
        steps = -(-images * layer.out[0] * layer.out[1] // share.pixels)
        each = -(-steps // share.programs)
        return share, each * share.pixels, -(-steps // each)

    def _table(self, images: int) -> tuple[Tensor, list[int], int]:
        """For a batch of `images`: `add_up_weights`' table, where each layer's partial sums begin, and their number."""
        if images not in self.tables:
            lines, begins, at = [], [], 0
            for layer in self.layers:
                size, programs = layer.conv.weight.numel(), self._split(layer, images)[2]
                lines += [[at, programs, size, start, layer.weight_at] for start in range(0, size, BLOCK)]
                begins.append(at)
                at += programs * size
            self.tables[images] = torch.tensor(lines, dtype=torch.int32).to(self.device), begins, at
        return self.tables[images]


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, network: FusedResNet, images: Tensor, *parameters: Tensor) -> Tensor:
        logits, ctx.run = network.forward(images)
        ctx.network = network
        return logits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.network.backward(ctx.run, grads[0])
