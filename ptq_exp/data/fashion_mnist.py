"""Fashion-MNIST (Xiao et al. 2017): grey images of clothes in MNIST's format, 1x28x28."""

from pathlib import Path

from torchvision import datasets

from ptq_exp.data.dataset import Dataset, Recipe
from ptq_exp.data.mnist import load_mnist, published_mnist
from ptq_exp.data.options import DataOptions

CLASSES = 10
# Mean and standard deviation over all pixels of the training images, on a scale from 0 to 1: the values in common use
# with torchvision.
MEAN, STD = (0.2860,), (0.3530,)
RECIPE = Recipe(crop_padding=2)
PUBLISHED = published_mnist(datasets.FashionMNIST, "fashion_mnist")
check = PUBLISHED.check


def load(options: DataOptions, cache: Path) -> Dataset:
    """Fashion-MNIST: 60,000 training and 10,000 test images in 10 classes."""
    classes = tuple(datasets.FashionMNIST.classes)
    return load_mnist(PUBLISHED, options, classes=classes, mean=MEAN, std=STD, recipe=RECIPE)
