"""SVHN (Netzer et al. 2011): house numbers in street photos, cropped to single digits of 3x32x32 pixels."""

from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from ptq_exp.data.dataset import Dataset, Recipe
from ptq_exp.data.options import DataOptions
from ptq_exp.data.published import Published

CLASSES = 10
# Mean and standard deviation over all pixels of the training images, red, green, blue, on a scale from 0 to 1: the
# values in common use with torchvision.
MEAN, STD = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
RECIPE = Recipe(flip=False)  # a mirrored digit is not a digit
SPLITS = ("train", "test")


def _read(root: str | Path, train: bool, download: bool) -> Any:
    return datasets.SVHN(root, split=SPLITS[not train], download=download)


PUBLISHED = Published(
    name="svhn",
    read=_read,
    unpacked=tuple(datasets.SVHN.split_list[split][1] for split in SPLITS),
    archives=lambda: {name: md5 for _, name, md5 in (datasets.SVHN.split_list[split] for split in SPLITS)},
    url=lambda: datasets.SVHN.split_list["train"][0],
)
check = PUBLISHED.check


def load(options: DataOptions, cache: Path) -> Dataset:
    """SVHN: 73,257 training and 26,032 test images in 10 classes, without the extra training images."""
    train, test = PUBLISHED.load(options)
    return Dataset(
        name=PUBLISHED.name,
        classes=tuple(str(digit) for digit in range(CLASSES)),
        train_images=torch.from_numpy(train.data).contiguous(),
        train_labels=torch.from_numpy(train.labels),
        test_images=torch.from_numpy(test.data).contiguous(),
        test_labels=torch.from_numpy(test.labels),
        mean=MEAN,
        std=STD,
        recipe=RECIPE,
    )
