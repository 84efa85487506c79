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
