"""MNIST (LeCun et al. 1998) and, through `published_mnist` and `load_mnist`, data sets in its format: grey images,
1x28x28."""

from pathlib import Path
from typing import Any

from torchvision import datasets

from ptq_exp.data.dataset import Dataset, Recipe
from ptq_exp.data.options import DataOptions
from ptq_exp.data.published import Published

CLASSES = 10
# Mean and standard deviation over all pixels of the training images, on a scale from 0 to 1: the values in common use
# with torchvision.
MEAN, STD = (0.1307,), (0.3081,)
# 20 epochs as for the other digits. A mirrored digit is not a digit.
RECIPE = Recipe(epochs=20, milestones=(12, 17), crop_padding=2, flip=False)


def published_mnist(reader: type[datasets.MNIST], name: str) -> Published:
    """A data set in MNIST's format. `reader` is its class in torchvision, which reads <root>/<class>/raw/*."""
    folder = reader.__name__
    return Published(
        name=name,
        read=reader,
        unpacked=(folder,),
        archives=lambda: {f"{folder}/raw/{file}": md5 for file, md5 in reader.resources},
        url=lambda: reader.mirrors[0],
    )


PUBLISHED = published_mnist(datasets.MNIST, "mnist")
check = PUBLISHED.check


def load(options: DataOptions, cache: Path) -> Dataset:
    """MNIST: 60,000 training and 10,000 test images in 10 classes."""
    classes = tuple(str(digit) for digit in range(CLASSES))
    return load_mnist(PUBLISHED, options, classes=classes, mean=MEAN, std=STD, recipe=RECIPE)


def load_mnist(source: Published, options: DataOptions, **described: Any) -> Dataset:
    """Read a data set in MNIST's format. Raises `DataUnavailable` as `Published.load` does."""
    train, test = source.load(options)
    return Dataset(
        name=source.name,
        train_images=train.data[:, None],
        train_labels=train.targets,
        test_images=test.data[:, None],
        test_labels=test.targets,
        **described,
    )
