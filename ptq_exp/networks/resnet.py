"""CIFAR ResNets of depth 6n+2 (He et al. 2015, "Deep Residual Learning", section 4.2)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptq_exp.base.errors import UserError, check_choice


class PadShortcut(nn.Module):
    """Option A of He et al.: every second pixel, with zero channels added on both sides. It has no weights."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride, self.padding = stride, (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.padding, self.padding))


class Addition(nn.Module):
    """The sum of a block's two branches. It is a module so that its operands can be quantized."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. Shapes: (N, in, H, W) -> (N, out, H/stride, W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
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
    """Three stages of n blocks with 16, 32 and 64 channels. (N, 3, 32, 32) -> logits (N, classes).

    Depth 20 has 21 convolutions with conv shortcuts and 19 with pad shortcuts.
    """

    def __init__(self, depth: int, shortcut: str, classes: int):
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, blocks, shortcut)
        self.layer2 = self._stage(16, 32, 2, blocks, shortcut)
        self.layer3 = self._stage(32, 64, 2, blocks, shortcut)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, stride: int, blocks: int, shortcut: str) -> nn.Sequential:
        first = BasicBlock(in_channels, out_channels, stride, shortcut)
        rest = [BasicBlock(out_channels, out_channels, 1, shortcut) for _ in range(blocks - 1)]
        return nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        # A mean instead of adaptive pooling, because its gradient is deterministic on CUDA.
        return self.linear(torch.flatten(x.mean((2, 3)), 1))


def build(classes: int, depth: int = 20, shortcut: str = "conv") -> ResNet:
    """A ResNet of depth 6n+2. `shortcut` is conv (1x1 convolution and batch norm), pad (no weights) or auto (conv for
    a new network, and the kind in the file for a checkpoint). Raises `UserError` for other values."""
    if not isinstance(depth, int) or depth < 8 or (depth - 2) % 6:
        raise UserError(f"model.depth={depth} is not 6n+2. Allowed: 20, 32, 44, 56, 110 and the like.")
    check_choice("model.shortcut", shortcut, ["auto", "conv", "pad"])
    return ResNet(depth, "pad" if shortcut == "pad" else "conv", classes)


def guess(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """The options of the ResNet closest to a state dict of these shapes, or None if it is not a ResNet."""
    blocks = {key.rpartition(".conv1.")[0] for key in shapes if key.endswith(".conv1.weight")}
    depth = 2 * len(blocks) + 2
    if "linear.weight" not in shapes or "conv1.weight" not in shapes or depth < 8 or (depth - 2) % 6:
        return None
    return {"depth": depth, "shortcut": "conv" if any(".shortcut." in key for key in shapes) else "pad"}
