"""CIFAR-10 and, through `published_cifar` and `load_cifar`, CIFAR-100 (Krizhevsky 2009)."""

from pathlib import Path

import torch
from torchvision import datasets

from ptq_exp.data.dataset import CIFAR10_MEAN, CIFAR10_STD, Dataset
from ptq_exp.data.options import DataOptions
from ptq_exp.data.published import Published

CLASSES = 10


def published_cifar(reader: type[datasets.CIFAR10]) -> Published:
    """One of the CIFAR data sets. `reader` is its class in torchvision."""
    return Published(
        name=reader.__name__.lower(),
        read=reader,
        unpacked=(reader.base_folder,),
        archives=lambda: {reader.filename: reader.tgz_md5},
        url=lambda: reader.url,
    )


PUBLISHED = published_cifar(datasets.CIFAR10)
check = PUBLISHED.check


def load(options: DataOptions, cache: Path) -> Dataset:
    """CIFAR-10: 50,000 training and 10,000 test images in 10 classes."""
    return load_cifar(PUBLISHED, CIFAR10_MEAN, CIFAR10_STD, options)


def load_cifar(source: Published, mean: tuple[float, ...], std: tuple[float, ...], options: DataOptions) -> Dataset:
    """Read one of the CIFAR data sets. Raises `DataUnavailable` as `Published.load` does."""
    train, test = source.load(options)
    return Dataset(
        name=source.name,
        classes=tuple(train.classes),
        train_images=torch.from_numpy(train.data).permute(0, 3, 1, 2).contiguous(),
        train_labels=torch.tensor(train.targets),
        test_images=torch.from_numpy(test.data).permute(0, 3, 1, 2).contiguous(),
        test_labels=torch.tensor(test.targets),
        mean=mean,
        std=std,
    )
