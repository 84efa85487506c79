"""Augmentation of the calibration images for distillation."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mix_pairs(images: Tensor, share: float) -> Tensor:
    """Blend about `share` of the images (N, 3, H, W) with another image of the batch, with random weights in [0, 1).

    The float network's predictions on blends are more informative than those on its own training images (Beyer et al.
    2022, "Knowledge distillation: A good teacher is patient and consistent").
    """
    if share == 0:
        return images
    n = len(images)
    others = images[torch.randperm(n, device=images.device)]
    weight = torch.rand(n, device=images.device) * (torch.rand(n, device=images.device) < share)
    return torch.lerp(images, others, weight[:, None, None, None])


def paste_pairs(images: Tensor, share: float) -> Tensor:
    """Replace a rectangle in about `share` of the images (N, 3, H, W) with that of another image of the batch.

    The rectangle has the shape of the image, a random centre and a random area up to the whole image, cut off at the
    borders (Yun et al. 2019, "CutMix", without labels).
    """
    if share == 0:
        return images
    n, _, height, width = images.shape
    others = images[torch.randperm(n, device=images.device)]
    side, y, x = torch.rand(3, n, 1, device=images.device)
    side = side.sqrt() / 2  # half of the side, as a share of the image
    inside_rows = (torch.arange(height, device=images.device) / height - y).abs() < side
    inside_columns = (torch.arange(width, device=images.device) / width - x).abs() < side
    chosen = torch.rand(n, 1, 1, device=images.device) < share
    inside = inside_rows[:, :, None] & inside_columns[:, None, :] & chosen
    return torch.where(inside[:, None], others, images)


def random_crop_and_flip(images: Tensor, padding: int = 4) -> Tensor:
    """Random crops of the padded images (N, 3, H, W), each at its own offset; half of them are flipped horizontally.

    Very small images get less padding, since reflection padding must be smaller than the image.
    """
    n, _, height, width = images.shape
    padding = min(padding, height - 1, width - 1)
    padded = F.pad(images, (padding,) * 4, mode="reflect")
    offsets = torch.randint(0, 2 * padding + 1, (2, n), device=images.device)
    rows = torch.arange(height, device=images.device) + offsets[0][:, None]
    columns = torch.arange(width, device=images.device) + offsets[1][:, None]
    batch = torch.arange(n, device=images.device)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    mirrored = torch.rand(n, device=images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], cropped.flip(3), cropped)
