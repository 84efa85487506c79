"""The common form of data sets: uint8 tensors, their fingerprint, and the recipe for training a network on them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ptq_exp.data.channels import sampled, statistics, with_channels
from ptq_exp.data.resizing import resized_tensor

STATISTICS_IMAGES = 10_000  # about this many training images determine a data set's own statistics
# The true statistics of the CIFAR-10 training images, red, green, blue, on a scale from 0 to 1.
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Recipe:
    """The training settings of a data set for options that are not configured. The defaults are the notebook's."""

    epochs: int = 180
    batch_size: int = 160
    lr: float = 0.022
    weight_decay: float = 9e-5
    milestones: tuple[int, ...] = (150, 225)
    crop_padding: int = 4  # black pixels around the image before a random crop of its size
    flip: bool = True  # flip half of the images horizontally


@dataclass(frozen=True)
class Dataset:
    """Images uint8 (N, C, H, W), C 3 or 1, and labels int64 (N,). `mean` and `std` have C numbers on a scale from 0 to
    1."""

    name: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: tuple[float, ...] = CIFAR10_MEAN
    std: tuple[float, ...] = CIFAR10_STD
    recipe: Recipe = field(default_factory=Recipe)
    note: str = ""  # a message for the user about the choice of this data set
    validation_images: Tensor | None = None
    validation_labels: Tensor | None = None

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the class names and of every image and label. It does not depend on the storage format."""
        every = (
            self.train_images,
            self.train_labels,
            self.test_images,
            self.test_labels,
            self.validation_images,
            self.validation_labels,
        )
        return _digest(self.classes, *every)

    def test_fingerprint(self) -> str:
        """SHA-256 (hex) of the class names and of every test image and its label, in order."""
        return _digest(self.classes, self.test_images, self.test_labels)

    def limited(self, train: int | None, test: int | None) -> "Dataset":
        """A data set with the first images of a fixed shuffle of each split, for quick trials."""

        def pick(images: Tensor, labels: Tensor, limit: int | None) -> tuple[Tensor, Tensor]:
            if limit is None or limit >= len(images):
                return images, labels
            chosen = fixed_shuffle(len(images))[:limit]
            return images[chosen], labels[chosen]

        train_images, train_labels = pick(self.train_images, self.train_labels, train)
        test_images, test_labels = pick(self.test_images, self.test_labels, test)
        return replace(
            self,
            train_images=train_images,
            train_labels=train_labels,
            test_images=test_images,
            test_labels=test_labels,
        )

    def with_validation(self, count: int) -> "Dataset":
        """A data set with `count` training images, the same for every seed, moved to a validation split."""
        if count == 0:
            return self
        order = fixed_shuffle(len(self.train_images))
        kept, held_out = order[count:].sort().values, order[:count].sort().values
        return replace(
            self,
            train_images=self.train_images[kept],
            train_labels=self.train_labels[kept],
            validation_images=self.train_images[held_out],
            validation_labels=self.train_labels[held_out],
        )

    def resized(self, side: int | None, crop: int | None = None) -> "Dataset":
        """A data set with images of `side` pixels, or `crop` (see `resizing.resized`). None leaves them unchanged."""
        if side is None:
            return self
        return self._mapped(lambda images: resized_tensor(images, side, crop))

    def with_channels(self, count: int) -> "Dataset":
        """A data set with images of one or three channels. Raises `UserError` for other numbers.

        Grey images become three equal channels with the same mean and std each. Colour images become their luma, whose
        mean and std are computed from the training images.
        """
        have = self.train_images.shape[1]
        if count == have:
            return self
        changed = self._mapped(lambda images: with_channels(images, count))
        if have == 1:
            mean, std = self.mean * count, self.std * count
        else:
            mean, std = changed.own_statistics()
        return replace(changed, mean=mean, std=std)

    def own_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std of each channel of the training images, or of a fixed sample if there are many."""
        return statistics(sampled(self.train_images, STATISTICS_IMAGES))

    def _mapped(self, convert: Callable[[Tensor], Tensor]) -> "Dataset":
        """The same data set with the images of every split converted."""
        images: dict[str, Any] = {
            name: convert(value) for name, value in vars(self).items() if name.endswith("_images") and value is not None
        }
        return replace(self, **images)

    def monitored(self) -> tuple[str, Tensor, Tensor]:
        """Name, images and labels of the split that selects the best epoch: validation if there is one, else test."""
        if self.validation_images is None or self.validation_labels is None:
            return "test", self.test_images, self.test_labels
        return "validation", self.validation_images, self.validation_labels

    def to(self, device: torch.device) -> "Dataset":
        """The same data set with its tensors on `device`."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


def fixed_shuffle(count: int) -> Tensor:
    """The permutation of 0..count-1 that every split uses. It does not depend on the configured seed."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def _digest(classes: Sequence[str], *tensors: Tensor | None) -> str:
    """SHA-256 (hex) of class names and tensors."""
    sha = hashlib.sha256("\n".join(classes).encode(errors="surrogateescape"))
    for tensor in tensors:
        if tensor is not None:
            sha.update(str(tuple(tensor.shape)).encode())
            sha.update(tensor.cpu().contiguous().numpy().data)
    return sha.hexdigest()
