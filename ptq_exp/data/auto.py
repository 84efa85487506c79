"""CIFAR-10 where it is on disk or can be downloaded, else the digits, which need no network."""

from dataclasses import replace

from ptq_exp.base.errors import UserError
from ptq_exp.config import Config
from ptq_exp.data import cifar10, digits
from ptq_exp.data.dataset import Dataset


def load(config: Config) -> Dataset:
    """The data set's `note` says when the digits stand in for CIFAR-10, and why."""
    try:
        return cifar10.load(config)
    except cifar10.DataUnavailable as error:
        refuse_stand_in(config, error)
        return replace(digits.load(config), note=f"data=auto uses the digits inside scikit-learn: {error}")


def refuse_stand_in(config: Config, error: cifar10.DataUnavailable) -> None:
    """Raise `UserError` where a checkpoint file is given: the digits are not what it was trained on."""
    if config.checkpoint not in ("auto", "train"):
        raise UserError(
            f"The digits do not stand in for CIFAR-10 where checkpoint={config.checkpoint} is given. Name the "
            f"data set that it was trained on, data=image_folder or data=digits for example. {error}"
        ) from error
