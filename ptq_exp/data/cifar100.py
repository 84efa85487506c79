"""CIFAR-100 (Krizhevsky 2009): images like those of CIFAR-10 in 100 classes."""

from pathlib import Path

from torchvision import datasets

from ptq_exp.data.cifar10 import load_cifar, published_cifar
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.options import DataOptions

CLASSES = 100
# Statistics of the training images, red, green, blue, on a scale from 0 to 1.
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
PUBLISHED = published_cifar(datasets.CIFAR100)
check = PUBLISHED.check


def load(options: DataOptions, cache: Path) -> Dataset:
    """CIFAR-100: 50,000 training and 10,000 test images in 100 classes."""
    return load_cifar(PUBLISHED, MEAN, STD, options)
