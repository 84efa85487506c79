"""Checks that reject a job before it computes or writes anything, from its configuration and files alone."""

from ptq_exp.base.errors import UserError
from ptq_exp.config import Config, validate
from ptq_exp.data import cifar10, cifar100, image_folder
from ptq_exp.networks.reading import read_checkpoint
from ptq_exp.runs.device import check_device
from ptq_exp.runs.float_model import check_classes, fitting_network
from ptq_exp.runs.images import no_stand_in

CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10}  # of the data sets with a fixed number of classes


def check_all(configs: list[Config]) -> None:
    """Raise the first job's `UserError` if no job of a sweep can succeed.

    If some can, the sweep runs, and the others fail when they start.
    """
    errors = []
    for config in configs:
        try:
            check(config)
            return
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def check(config: Config) -> None:
    """Raise `UserError` for invalid or incompatible values, devices, data folders and checkpoint files."""
    validate(config)
    check_device(config.device)
    _check_data(config)
    if config.checkpoint not in ("auto", "train") and "://" not in config.checkpoint:
        checkpoint = read_checkpoint(config.checkpoint, config.cache, config.data.timeout)
        network = fitting_network(config, checkpoint)
        if config.data.name in CLASSES:
            check_classes(network, checkpoint.path, config.data.name, CLASSES[config.data.name])


def _check_data(config: Config) -> None:
    name, root = config.data.name, config.data.folder
    if name == "image_folder":
        image_folder.existing_root(config.data)
    reader = {"auto": cifar10.READER, "cifar10": cifar10.READER, "cifar100": cifar100.READER}.get(name)
    if (
        reader is None
        or config.data.download
        or any((root / name).exists() for name in (reader.base_folder, reader.filename))
    ):
        return
    missing = cifar10.missing(reader, root)
    if name != "auto":
        raise missing
    if config.checkpoint not in ("auto", "train"):
        raise no_stand_in(config.checkpoint, missing)
