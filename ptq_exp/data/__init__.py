"""Data sets, each held in memory as uint8 tensors.

A data set is one file here with a function `load(config: Config) -> Dataset` and one YAML under
`conf/data/` whose `name` names the file.
"""

import importlib
import pkgutil

import torch

from ptq_exp.base.errors import UserError, check_choice
from ptq_exp.config import Config
from ptq_exp.data.dataset import Dataset

_NOT_DATA_SETS = {"archive", "class_names", "dataset", "layout", "loader", "pixels"}


def load_dataset(config: Config, device: torch.device) -> Dataset:
    """Load the configured data set onto `device`.

    Raises `UserError` where the data is missing, broken or too small for what was asked.
    """
    names = {module.name for module in pkgutil.iter_modules(__path__)} - _NOT_DATA_SETS
    check_choice("data.name", config.data.name, names)
    if config.data.classes is not None and config.data.name != "image_folder":
        raise UserError(f"data.classes has no effect with data={config.data.name}, whose classes have a fixed order.")
    dataset: Dataset = importlib.import_module(f"{__name__}.{config.data.name}").load(config)
    dataset = dataset.limited(config.data.train_limit, config.data.test_limit)
    held_out = config.data.validation_images
    if held_out >= len(dataset.train_images):
        raise UserError(
            f"data.validation_images={held_out} leaves nothing to train on: "
            f"{dataset.name} has {len(dataset.train_images)} training images."
        )
    return dataset.with_validation(held_out).to(device)
