"""CIFAR ResNets of depth 6n+2 (He et al. 2015, "Deep Residual Learning", section 4.2)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptq_exp.base.errors import UserError, check_choice
from ptq_exp.networks.options import check_channels

WIDTHS = (16, 32, 64)  # of the three stages
DEEPEST = 1202  # of He et al.


class PadShortcut(nn.Module):
    """Option A of He et al.: every second pixel, with zero channels added on both sides. It has no weights."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        added = out_channels - in_channels
        self.stride, self.padding, self.odd = stride, added // 2, added % 2

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.padding, self.padding + self.odd))


class Addition(nn.Module):
    """The sum of a block's two branches. It is a module so that its operands can be quantized."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. Shapes: (N, in, H, W) -> (N, out, H/stride, W/stride)."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, inner, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.add = Addition()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            if shortcut == "pad":
                self.shortcut = PadShortcut(in_channels, out_channels, stride)
            else:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
                )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.add(self.bn2(self.conv2(out)), self.shortcut(x)))


class ResNet(nn.Module):
    """Three stages of n blocks, by default with 16, 32 and 64 channels. (N, 3, 32, 32) -> logits (N, classes).

    Depth 20 has 21 convolutions with conv shortcuts and 19 with pad shortcuts. `channels` are the output channels of
    every 3x3 convolution.
    """

    def __init__(self, channels: list[int], shortcut: str, classes: int):
        super().__init__()
        stem, *inside = channels
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        in_channels, stages = stem, []
        for stage in range(3):
            size = len(inside) // 3
            layer = self._stage(in_channels, inside[stage * size : (stage + 1) * size], 2 if stage else 1, shortcut)
            in_channels = inside[(stage + 1) * size - 1]
            stages.append(layer)
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(in_channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, channels: list[int], stride: int, shortcut: str) -> nn.Sequential:
        blocks = []
        for inner, out_channels in zip(channels[::2], channels[1::2], strict=True):
            blocks.append(BasicBlock(in_channels, inner, out_channels, stride, shortcut))
            in_channels, stride = out_channels, 1
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        # A mean instead of adaptive pooling, because its gradient is deterministic on CUDA.
        return self.linear(torch.flatten(x.mean((2, 3)), 1))


def build(classes: int, depth: int = 20, shortcut: str = "conv", channels: list[int] | None = None) -> ResNet:
    """A ResNet of depth 6n+2. `shortcut` is conv (1x1 convolution and batch norm), pad (no weights) or auto (conv for
    a new network, and the kind in the file for a checkpoint). `channels` are those of the three stages (16, 32, 64 if
    None) or those of every 3x3 convolution, as in a pruned network. Raises `UserError` for other values."""
    if not isinstance(depth, int) or depth < 8 or (depth - 2) % 6:
        raise UserError(f"model.depth={depth} is not 6n+2. Allowed: 20, 32, 44, 56, 110 and the like.")
    check_choice("model.shortcut", shortcut, ["auto", "conv", "pad"])
    return ResNet(all_channels(channels, depth), "pad" if shortcut == "pad" else "conv", classes)


def all_channels(channels: list[int] | None, depth: int) -> list[int]:
    """The output channels of every 3x3 convolution. Raises `UserError` for a list of another length."""
    given = list(channels or WIDTHS)
    check_channels(given, (len(WIDTHS), depth - 1))
    each = (depth - 2) // 3
    return [given[0]] + [width for width in given for _ in range(each)] if len(given) == len(WIDTHS) else given


def guess(shapes: dict[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    """The options of the ResNets closest to a state dict of these shapes: of the usual and of its own widths."""
    kernels = [shape for shape in shapes.values() if len(shape) == 4]
    found = [shape[0] for shape in kernels if shape[2:] == (3, 3)]
    depth = len(found) + 1
    if not 8 <= depth <= DEEPEST or (depth - 2) % 6:
        return []
    options = {"depth": depth, "shortcut": "conv" if len(found) < len(kernels) else "pad"}
    each = (depth - 2) // 6
    outputs = [found[2::2][stage * each : (stage + 1) * each] for stage in range(3)]
    widths = [stage[0] for stage in outputs]
    # A channel count that changes within a stage is a sign of another division into stages.
    if any(len({*stage}) > 1 for stage in outputs) or widths != sorted(widths):
        return [options]
    own = widths if all_channels(widths, depth) == found else found
    return [options] if own == list(WIDTHS) else [options, options | {"channels": own}]
