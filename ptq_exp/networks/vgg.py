"""VGG with batch norm for 32x32 images (Simonyan & Zisserman 2014, configurations A, B, D, E).

The three fully connected layers of the ImageNet network are replaced by one, since five poolings leave 1x1 pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ptq_exp.base.errors import UserError

# Convolutions in each of the five stages. Every stage ends with a 2x2 max pooling.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """(N, 3, 32, 32) -> logits (N, classes). Depth 16 has 13 convolutions."""

    def __init__(self, depth: int, classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 3
        for count, out_channels in zip(STAGES[depth], CHANNELS, strict=True):
            for _ in range(count):
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


def build(classes: int, depth: int = 16) -> VGG:
    """A VGG of depth 11, 13, 16 or 19. Raises `UserError` for other depths."""
    if depth not in STAGES:
        raise UserError(f"model.depth={depth} is not a VGG depth. Allowed: {', '.join(map(str, STAGES))}.")
    return VGG(depth, classes)


def guess(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """The options of the VGG closest to a state dict of these shapes, or None if it is not a VGG."""
    convolutions = sum(key.startswith("features.") and len(shape) == 4 for key, shape in shapes.items())
    if "linear.weight" not in shapes or convolutions + 3 not in STAGES:
        return None
    return {"depth": convolutions + 3}
