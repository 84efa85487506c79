"""CIFAR-10 where it is on disk or can be downloaded, else the digits, which need no network."""

from dataclasses import replace
from pathlib import Path

from ptq_exp.data import cifar10, digits
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.options import DataOptions


def load(options: DataOptions, cache: Path) -> Dataset:
    """The data set's `note` says when the digits stand in for CIFAR-10, and why."""
    try:
        return cifar10.load(options, cache)
    except cifar10.DataUnavailable as error:
        return replace(digits.load(options, cache), note=f"data=auto uses the digits inside scikit-learn: {error}")
