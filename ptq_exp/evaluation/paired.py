"""Two networks on the same images: which ones each classifies correctly, and the paired interval of the difference.

Imports no torch, because records contain these objects.
"""

import base64
import math
from collections.abc import Iterable
from dataclasses import dataclass

Z = 1.959964  # the normal quantile of a 95 % interval


@dataclass(frozen=True)
class Correct:
    """Which test images a network classifies correctly: one bit per image, 1.7 kB as text for 10,000 images."""

    images: int
    digest: str  # SHA-256 (hex) of these images and their labels; only the same images can be compared
    bits: str  # base64; image i is bit i % 8 (the lowest is bit 0) of byte i // 8

    @classmethod
    def of(cls, values: Iterable[bool], digest: str) -> "Correct":
        """From one truth value per image."""
        images = list(values)
        packed = bytearray(-(-len(images) // 8))
        for number, right in enumerate(images):
            packed[number // 8] |= right << number % 8
        return cls(len(images), digest, base64.b64encode(packed).decode())

    @property
    def mask(self) -> int:
        """The same as an integer: image i is bit i."""
        return int.from_bytes(base64.b64decode(self.bits), "little")

    @property
    def count(self) -> int:
        """Number of images that are classified correctly."""
        return self.mask.bit_count()


@dataclass(frozen=True)
class Difference:
    """The top-1 of one network minus that of another, in points, with its 95 % interval."""

    points: float
    ci_low: float
    ci_high: float


def difference(first: Correct | None, second: Correct | None) -> Difference | None:
    """The top-1 of `first` minus that of `second` with its paired 95 % interval, or None if the images differ or are
    unknown."""
    if first is None or second is None or (first.images, first.digest) != (second.images, second.digest):
        return None
    ours, theirs = first.mask, second.mask
    gained, lost = (ours & ~theirs).bit_count(), (theirs & ~ours).bit_count()
    return Difference(100 * (gained - lost) / first.images, *paired_interval(gained, lost, first.images))


def paired_interval(gained: int, lost: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a difference of two accuracies on the same `count` images, in points.

    With b images that only the first network classifies correctly (`gained`) and c that only the second does (`lost`),
    the difference is (b - c) / n. The interval is Wald's with one image added to b and to c and two to n (Bonett &
    Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data").
    Without this adjustment, a handful of images would be significant.
    """
    total = count + 2
    centre = (gained - lost) / total
    half = Z * math.sqrt(gained + lost + 2 - (gained - lost) ** 2 / total) / total
    return 100 * max(-1.0, centre - half), 100 * min(1.0, centre + half)
