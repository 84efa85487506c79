"""The images of a job."""

from dataclasses import replace

import torch

from ptq_exp.base.errors import UserError
from ptq_exp.config import Config
from ptq_exp.data import load_dataset
from ptq_exp.data.cifar10 import DataUnavailable
from ptq_exp.data.dataset import Dataset


def load_images(config: Config, device: torch.device) -> Dataset:
    """The data set of `config` on `device`. Raises `UserError` where it cannot be had."""
    options = config.data
    if options.name != "auto" or config.checkpoint in ("auto", "train"):
        return load_dataset(options, config.cache, device)
    try:
        return load_dataset(replace(options, name="cifar10"), config.cache, device)
    except DataUnavailable as error:
        raise no_stand_in(config.checkpoint, error) from error


def no_stand_in(checkpoint: str, reason: DataUnavailable) -> UserError:
    """The refusal of data=auto where a checkpoint file is given: the digits are not what it was trained on."""
    return UserError(
        f"The digits do not stand in for CIFAR-10 where checkpoint={checkpoint} is given. Name the "
        f"data set that it was trained on, data=image_folder or data=digits for example. {reason}"
    )
