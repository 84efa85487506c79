"""Data sets, held in memory as uint8 tensors, and the loader that augments and normalizes them on the device.

A data set is one file here with a function `load(options, cache) -> Dataset` and one YAML file under `conf/data/`.
Its key `name` names the file. The file may also have a function `check(options)`, which raises `UserError` if the data
cannot be available, and `CLASSES`, the number of classes. The evaluation of networks on the images belongs to
`evaluation`.
"""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ptq_exp.base.errors import UserError, check_choice
from ptq_exp.data.options import DataOptions

if TYPE_CHECKING:
    import torch

    from ptq_exp.data.dataset import Dataset

_NOT_DATA_SETS = {
    "archive", "channels", "class_names", "dataset", "groups", "label_files", "layout", "loader", "normalization",
    "options", "pixels", "published", "resizing", "splits",
}  # fmt: skip


def load_dataset(options: DataOptions, cache: Path, device: "torch.device") -> "Dataset":
    """Load the data set in the options to `device`. Decoded images are kept below `cache`.

    Raises `UserError` if the data is missing, damaged or too small for the options.
    """
    module = _module(options)
    options.check()
    dataset: Dataset = module.load(options, cache)
    dataset = dataset.limited(options.train_limit, options.test_limit)
    if options.name != "image_folder":  # which resizes the files while it decodes them
        dataset = dataset.resized(options.resize, options.crop)
    held_out = options.validation_images
    if held_out >= len(dataset.train_images):
        raise UserError(
            f"data.validation_images={held_out} leaves no images for training: "
            f"{dataset.name} has {len(dataset.train_images)} training images."
        )
    return dataset.with_validation(held_out).to(device)


def check_data(options: DataOptions) -> None:
    """Raise `UserError` if the files alone show that the data set is not available."""
    if check := getattr(_module(options), "check", None):
        check(options)


def number_of_classes(options: DataOptions) -> int | None:
    """The number of classes of the data set, or None if only its images tell."""
    found: int | None = getattr(_module(options), "CLASSES", None)
    return found


def _module(options: DataOptions) -> ModuleType:
    """The data set's file."""
    names = {module.name for module in pkgutil.iter_modules(__path__)} - _NOT_DATA_SETS
    check_choice("data.name", options.name, names)
    return importlib.import_module(f"{__name__}.{options.name}")
