"""Batches from tensors that are already on the device: shuffling, cropping, flipping, normalizing."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Normalize = Callable[[Tensor], Tensor]  # images (N, C, H, W), usually uint8 -> normalized float32 images


class Normalizer:
    """Converts uint8 images (N, C, H, W) to float32 channels-last: (x / 255 - mean) / std, as in torchvision.

    `mean` and `std` have a number for each of the C channels, or one for all.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device):
        self.mean = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, -1, 1, 1)

    def to(self, device: str) -> "Normalizer":
        """The same normalization on another device."""
        return Normalizer(self.mean.flatten().tolist(), self.std.flatten().tolist(), torch.device(device))

    def __call__(self, images: Tensor) -> Tensor:
        scaled = images.to(torch.float32, memory_format=torch.channels_last).div_(255)
        return scaled.sub_(self.mean).div_(self.std)


class TrainingLoader:
    """Shuffled, augmented batches of uint8 images.

    The order and augmentation of an epoch depend only on the seed and the epoch's number, so that a resumed training
    gets the same batches as an uninterrupted one. `crop_padding` and `flip` are torchvision's RandomCrop(H, padding)
    and RandomHorizontalFlip, drawn separately for each image.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, crop_padding: int, flip: bool, seed: int):
        self.labels, self.batch_size, self.flip, self.seed = labels, batch_size, flip, seed
        self.padding, self.size = crop_padding, images.shape[-2:]
        padded = F.pad(images, (crop_padding,) * 4)
        # A view (N, C, offsets, offsets, H, W) of all possible crops. Indexing it copies only the chosen crops.
        self.crops = padded.unfold(2, self.size[0], 1).unfold(3, self.size[1], 1)

    def __len__(self) -> int:
        """The number of batches in an epoch; the last one may be smaller."""
        return math.ceil(len(self.labels) / self.batch_size)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches (images uint8, labels int64) of epoch `number`, counted from 0."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        count, device = len(self.labels), self.labels.device
        order = torch.randperm(count, generator=generator).to(device)
        offsets = torch.randint(0, 2 * self.padding + 1, (2, count), generator=generator).to(device)
        mirrored = (torch.rand(count, generator=generator) < 0.5).to(device) if self.flip else None
        # On CUDA, the whole epoch at once: a few large kernels instead of many small ones. On a CPU, batch by batch,
        # so that the data stays in its caches.
        together = count if device.type == "cuda" else self.batch_size
        for start in range(0, count, together):
            chosen = slice(start, start + together)
            images = crop(self.crops, order[chosen], offsets[0, chosen], offsets[1, chosen])
            if mirrored is not None:
                images = torch.where(mirrored[chosen].view(-1, 1, 1, 1), images.flip(3), images)
            labels = self.labels[order[chosen]]
            yield from zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True)


def crop(crops: Tensor, chosen: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Images `chosen` (B,) at their offsets `top`, `left` (B,) in pixels: (B, C, H, W)."""
    return crops[chosen, :, top, left]
