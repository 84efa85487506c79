"""What the adapters of several tools share."""

from torch import Tensor, nn


def batches(images: Tensor, size: int) -> list[Tensor]:
    """The images (N, 3, H, W) in batches of at most `size`."""
    return list(images.split(size))


def first_layer(network: nn.Module) -> nn.Module:
    """The layer that the image enters: the first convolution."""
    return next(module for module in network.modules() if isinstance(module, nn.Conv2d))
