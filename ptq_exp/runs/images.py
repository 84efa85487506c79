"""Loading the images of a job."""

from dataclasses import replace

import torch

from ptq_exp.base.errors import UserError
from ptq_exp.config import Config
from ptq_exp.data import load_dataset
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.published import DataUnavailable
from ptq_exp.networks.reading.checkpoint import KEYWORDS


def load_images(config: Config, device: torch.device) -> Dataset:
    """Load the data set of `config` to `device`. Raises `UserError` if it is not available."""
    options = config.data
    if options.name != "auto" or config.checkpoint in KEYWORDS:
        return load_dataset(options, config.cache, device)
    try:
        return load_dataset(replace(options, name="cifar10"), config.cache, device)
    except DataUnavailable as error:
        raise no_stand_in(config.checkpoint, error) from error


def no_stand_in(checkpoint: str, reason: DataUnavailable) -> UserError:
    """The error for data=auto with a checkpoint file: it was trained on CIFAR-10, so the digits are no substitute."""
    return UserError(
        f"The digits cannot replace CIFAR-10 if checkpoint={checkpoint} is given. Choose the data set that it was "
        f"trained on, for example data=image_folder or data=digits. {reason}"
    )
