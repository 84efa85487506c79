"""Normalization constants in common use, and their names in the log."""

from dataclasses import dataclass

from ptq_exp.data.dataset import CIFAR10_MEAN, CIFAR10_STD, Dataset

EQUAL = 0.004  # mean and std closer than this are the same constants, rounded differently


@dataclass(frozen=True)
class Constants:
    """Mean and std of the channels, red, green and blue or one, on a scale from 0 to 1."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def same_as(self, other: "Constants") -> bool:
        """Whether both are the same constants, rounded differently."""
        if len(self.mean) != len(other.mean):
            return False
        pairs = zip((*self.mean, *self.std), (*other.mean, *other.std), strict=True)
        # Small values are compared relatively, so that a std of 1/255 does not equal 0.
        return all(abs(a - b) <= EQUAL * min(1.0, 50 * max(abs(a), abs(b))) for a, b in pairs)

    def __str__(self) -> str:
        return f"{self.name} ({self.values()})"

    def values(self) -> str:
        """`mean 0.5 0.5 0.5, std 0.5 0.5 0.5`."""
        return f"mean {_numbers(self.mean)}, std {_numbers(self.std)}"

    def as_override(self) -> str:
        """The two keys as typed on the command line."""
        return f"data.mean='[{_numbers(self.mean, ',')}]' data.std='[{_numbers(self.std, ',')}]'"


KNOWN = (
    Constants("CIFAR-10's statistics", CIFAR10_MEAN, CIFAR10_STD),
    Constants("ImageNet's statistics", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # Used in kuangliu's pytorch-cifar and its derivatives: the mean over images of each image's std.
    Constants("the CIFAR-10 constants of pytorch-cifar", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    Constants("CIFAR-100's statistics", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    Constants("mean 0.5 and std 0.5", (0.5,) * 3, (0.5,) * 3),
    Constants("values from 0 to 1", (0.0,) * 3, (1.0,) * 3),
    Constants("values from 0 to 255", (0.0,) * 3, (1 / 255,) * 3),
)


KNOWN_GREY = (
    Constants("MNIST's statistics", (0.1307,), (0.3081,)),
    Constants("Fashion-MNIST's statistics", (0.2860,), (0.3530,)),
    Constants("mean 0.5 and std 0.5", (0.5,), (0.5,)),
    Constants("values from 0 to 1", (0.0,), (1.0,)),
    Constants("values from 0 to 255", (0.0,), (1 / 255,)),
)


def candidates(dataset: Dataset) -> list[Constants]:
    """The known constants for the images' channels and, if they are different, the data set's own."""
    own = own_constants(dataset)
    known = _known(len(own.mean))
    return [*known, *([] if any(own.same_as(each) for each in known) else [own])]


def own_constants(dataset: Dataset) -> Constants:
    """Mean and std over the pixels of the training images (or of a fixed sample if there are many)."""
    return Constants(f"{dataset.name}'s own statistics", *dataset.own_statistics())


def named(mean: tuple[float, ...], std: tuple[float, ...], whose: str) -> Constants:
    """Constants with their known name, or with the name `whose`."""
    found = Constants(whose, mean, std)
    name = next((known.name for known in _known(len(mean)) if known.same_as(found)), whose)
    return Constants(name, mean, std)


def _known(channels: int) -> tuple[Constants, ...]:
    return KNOWN_GREY if channels == 1 else KNOWN


def _numbers(values: tuple[float, ...], separator: str = " ") -> str:
    return separator.join(f"{value:.4g}" for value in values)
