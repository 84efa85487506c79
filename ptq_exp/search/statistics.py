"""Tests of non-inferiority: is the top-1 of a network at most a margin below that of the float network?

A trial passes if the one-sided upper confidence limit of its drop is below the margin. Within one sequence of widths,
tried from wide to narrow in an order fixed beforehand and left at the first failure, no correction for several tests is
needed (fixed-sequence procedure: Maurer, Hothorn & Lehmacher 1995; Westfall & Krishen 2001): the first width that
really loses more than the margin is passed with at most the error of one test, and narrower ones are only reached
through it. Errors of different sequences add up, so the sequences of a search share the permitted error equally.
"""

import math
from statistics import NormalDist

from ptq_exp.evaluation.paired import Z

TYPICAL_CHANGE = 0.05  # share of images whose correctness changes, for the number of images that a margin takes
POWER = 0.8


def level_of(confidence: float, sequences: int) -> float:
    """The confidence (0 to 1) of each test, so that all `sequences` together keep `confidence` percent."""
    return 1 - (1 - confidence / 100) / sequences


def drop_limit(low: float, high: float, level: float) -> float:
    """The one-sided upper limit of a drop, at confidence `level`, from its two-sided 95 % interval, in points.

    Both are based on the same standard error (see `evaluation.paired.paired_interval`).
    """
    return (low + high) / 2 + NormalDist().inv_cdf(level) / Z * (high - low) / 2


def images_required(margin: float, level: float) -> int:
    """The number of test images with which a network without any change of a prediction passes: fewer are hopeless."""
    return math.floor(NormalDist().inv_cdf(level) * math.sqrt(2) / (margin / 100) - 2) + 1


def images_advisable(margin: float, level: float, change: float = TYPICAL_CHANGE) -> int:
    """The number of test images with which a network passes with a probability of 80 % if it loses nothing and a share
    `change` of the images changes from right to wrong or back."""
    quantiles = NormalDist().inv_cdf(level) + NormalDist().inv_cdf(POWER)
    return math.ceil(change * (quantiles / (margin / 100)) ** 2)
