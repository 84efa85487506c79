"""CIFAR-10 if it is on disk or can be downloaded, else the digits, which need no internet connection."""

from dataclasses import replace
from pathlib import Path

from ptq_exp.data import cifar10, digits
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.options import DataOptions
from ptq_exp.data.published import DataUnavailable


def load(options: DataOptions, cache: Path) -> Dataset:
    """CIFAR-10, or the digits with the reason in the data set's `note`."""
    try:
        return cifar10.load(options, cache)
    except DataUnavailable as error:
        return replace(digits.load(options, cache), note=f"data=auto uses the digits inside scikit-learn: {error}")
