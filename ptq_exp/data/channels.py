"""Images with another number of channels, and the statistics of the channels."""

import torch
from torch import Tensor

from ptq_exp.base.errors import UserError

CHUNK = 2_000  # images converted at once; the sums of their channels take four bytes per pixel
# The luma of ITU-R 601 (0.299, 0.587, 0.114) in Pillow's fixed-point arithmetic, so that every machine rounds alike.
LUMA, LUMA_BITS = (19_595, 38_470, 7_471), 16


def with_channels(images: Tensor, count: int) -> Tensor:
    """uint8 images (N, C, H, W) with `count` channels: three become one as in Pillow's `convert("L")`, and one becomes
    three equal ones. Raises `UserError` for any other change.
    """
    have = images.shape[1]
    if have == count:
        return images
    if (have, count) == (1, 3):
        return images.expand(-1, 3, -1, -1).contiguous()
    if (have, count) == (3, 1):
        return torch.cat([_luma(chunk) for chunk in images.split(CHUNK)])
    raise UserError(
        f"Images of {have} {_noun(have)} cannot be given to a network whose first layer takes {count} {_noun(count)}. "
        "Only colour (3) and grey (1) images are converted."
    )


def _luma(images: Tensor) -> Tensor:
    red, green, blue = (images[:, channel].int().mul_(weight) for channel, weight in enumerate(LUMA))
    rounded = red.add_(green).add_(blue).add_(1 << (LUMA_BITS - 1)) >> LUMA_BITS
    return rounded.to(torch.uint8)[:, None]


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel over all pixels, on a scale from 0 to 1, to four decimals."""
    pixels = images.transpose(0, 1).flatten(1)
    counts = torch.stack([torch.bincount(channel, minlength=256) for channel in pixels]).double().cpu()
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ values
    std = (share @ values.square() - mean.square()).clamp(min=0).sqrt().clamp(min=1 / 255)
    rounded = [tuple(round(value, 4) for value in numbers.tolist()) for numbers in (mean, std)]
    return rounded[0], rounded[1]


def sampled(images: Tensor, most: int) -> Tensor:
    """The images, or about `most` to twice as many at equal distances if there are more."""
    return images[:: max(1, len(images) // most)]


def _noun(count: int) -> str:
    return "channel" if count == 1 else "channels"
