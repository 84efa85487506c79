"""Checks that reject a job before it computes or writes anything, from its configuration and files alone."""

from dataclasses import replace
from pathlib import Path

from ptq_exp.base.errors import UserError
from ptq_exp.base.files import check_writable
from ptq_exp.config import Config, validate
from ptq_exp.data import check_data, number_of_classes
from ptq_exp.data.published import DataUnavailable
from ptq_exp.networks import build_model
from ptq_exp.networks.reading import read_weights
from ptq_exp.networks.reading.checkpoint import KEYWORDS
from ptq_exp.runs.checkpoint_file import check_classes, fitted_network, identified
from ptq_exp.runs.device import check_device
from ptq_exp.runs.images import no_stand_in
from ptq_exp.training.loop import target_of


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
    classes = number_of_classes(config.data)
    if config.checkpoint not in KEYWORDS and "://" not in config.checkpoint:
        file = read_weights(config.checkpoint, config.cache, config.data.timeout)
        network = identified(config, file, classes or 1)
        if classes is not None:
            check_classes(network, file.path, config.data.name, classes)
            fitted_network(network, file)
    else:
        _check_training(config)
        if classes is not None and config.model.get("architecture") == "custom":
            build_model(classes=classes, **{key: value for key, value in config.model.items() if key != "name"})
    _check_folders(config)


def _check_training(config: Config) -> None:
    """Raise `UserError` for a recipe that cannot train, or weights that nobody trained."""
    if config.checkpoint != "pretrained":
        target_of("optimizer", config.optimizer)
        target_of("scheduler", config.scheduler)
    elif config.model.get("architecture") != "custom":
        raise UserError(
            "checkpoint=pretrained needs a constructor that brings weights (docs/how-to/own-network.md). The networks "
            "of ptq_exp begin with random ones. Use checkpoint=auto, or the path of a checkpoint."
        )


def _check_folders(config: Config) -> None:
    """Raise `UserError` for a folder on the command line that cannot be written to."""
    folders = {
        "output_dir": config.output_dir, "cache_dir": config.cache_dir,
        "tracking.tensorboard": config.tracking.tensorboard,
    }  # fmt: skip
    for key in folders.keys() & config.typed.keys():
        if folder := folders[key]:
            try:
                check_writable(Path(folder).expanduser())
            except OSError as error:
                raise UserError(f"{key}={folder} cannot be written to: {error.strerror}.") from error


def _check_data(config: Config) -> None:
    options = config.data
    if options.name != "auto":
        check_data(options)
    elif config.checkpoint not in KEYWORDS:
        try:
            check_data(replace(options, name="cifar10"))
        except DataUnavailable as error:
            raise no_stand_in(config.checkpoint, error) from error
