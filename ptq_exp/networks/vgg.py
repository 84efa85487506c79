"""VGG with batch norm for 32x32 images (Simonyan & Zisserman 2014, configurations A, B, D, E).

The three fully connected layers of the ImageNet network are replaced by one, since five poolings leave 1x1 pixels.
"""

from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.networks.options import check_channels

# Convolutions in each of the five stages. Every stage ends with a 2x2 max pooling.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """(N, 3, 32, 32) -> logits (N, classes). Depth 16 has 13 convolutions, with `channels` output channels."""

    def __init__(self, depth: int, channels: list[int], classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        in_channels, remaining = 3, iter(channels)
        for count in STAGES[depth]:
            for out_channels in islice(remaining, count):
                layers += [
                    nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out_channels),
                    nn.ReLU(inplace=True),
                ]
                in_channels = out_channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(in_channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.flatten(self.features(x), 1))


def build(classes: int, depth: int = 16, channels: list[int] | None = None) -> VGG:
    """A VGG of depth 11, 13, 16 or 19. `channels` are those of the five stages (64, 128, 256, 512, 512 if None) or
    those of every convolution, as in a pruned network. Raises `UserError` for other values."""
    if depth not in STAGES:
        raise UserError(f"model.depth={depth} is not a VGG depth. Allowed: {', '.join(map(str, STAGES))}.")
    return VGG(depth, all_channels(channels, depth), classes)


def all_channels(channels: list[int] | None, depth: int) -> list[int]:
    """The output channels of every convolution. Raises `UserError` for a list of another length."""
    given = list(channels or CHANNELS)
    check_channels(given, (len(CHANNELS), sum(STAGES[depth])))
    if len(given) > len(CHANNELS):
        return given
    return [width for width, count in zip(given, STAGES[depth], strict=True) for _ in range(count)]


def guess(shapes: dict[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    """The options of the VGGs closest to a state dict of these shapes: of the usual and of its own widths."""
    kernels = [shape for shape in shapes.values() if len(shape) == 4]
    found, depth = [shape[0] for shape in kernels], len(kernels) + 3
    if depth not in STAGES or any(shape[2:] != (3, 3) for shape in kernels):
        return []
    lasts = list(accumulate(STAGES[depth]))
    widths = [found[last - 1] for last in lasts]
    own = widths if all_channels(widths, depth) == found else found
    return [{"depth": depth}] if own == list(CHANNELS) else [{"depth": depth}, {"depth": depth, "channels": own}]
