"""The handwritten digits in scikit-learn: 1,797 real images that need no internet connection.

Source: Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", test part, 8x8 pixels of 17 grey
levels. They are upsampled to 3x32x32 to fit a CIFAR network.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

from ptq_exp.data.dataset import Dataset, Recipe
from ptq_exp.data.options import DataOptions

CLASSES = 10
# Every fifth image of a class is held out: 364 test images, the same on every machine.
TEST_EVERY = 5
RECIPE = Recipe(epochs=20, batch_size=64, lr=0.05, weight_decay=5e-4, milestones=(12, 17), crop_padding=4, flip=False)


def load(options: DataOptions, cache: Path) -> Dataset:
    """The digits with their fixed split. No option changes them."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = torch.from_numpy(bunch.images).float()[:, None]  # (1797, 1, 8, 8), values 0..16
    labels = torch.from_numpy(bunch.target).long()
    # The weights of a fourfold bilinear upsampling are multiples of 1/64, so the result is exact on every machine.
    upsampled = F.interpolate(grey, scale_factor=4, mode="bilinear", align_corners=False)
    images = (upsampled * 255 / 16).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()

    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(CLASSES):
        held_out[(labels == digit).nonzero().flatten()[::TEST_EVERY]] = True
    return Dataset(
        name="digits",
        classes=tuple(str(digit) for digit in range(CLASSES)),
        train_images=images[~held_out],
        train_labels=labels[~held_out],
        test_images=images[held_out],
        test_labels=labels[held_out],
        mean=(0.3054,) * 3,
        std=(0.3239,) * 3,
        recipe=RECIPE,
    )
