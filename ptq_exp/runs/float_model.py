"""The float network that is quantized, as it comes from a checkpoint file."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptq_exp.base.console import log
from ptq_exp.base.errors import UserError
from ptq_exp.config import Config
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.loader import Normalizer
from ptq_exp.data.normalization import Constants, named
from ptq_exp.evaluation.batch_norm_check import check_constants, choose_constants
from ptq_exp.networks import build_model
from ptq_exp.networks.identification import Identity
from ptq_exp.networks.reading import Checkpoint, load_weights, read_checkpoint

DATA_BY_CLASSES = {10: "data=cifar10", 100: "data=cifar100"}


@dataclass
class FloatModel:
    """A float network on its device, ready to be evaluated and quantized."""

    model: nn.Module
    normalize: Normalizer
    digest: str  # SHA-256 (hex) of the training configuration and data, or of the file it came from
    options: dict[str, Any]  # what was really built: architecture, depth, shortcut
    config: Config  # with the network, the recipe and the normalization really used
    source: str  # a sentence for the log
    history: list[dict[str, float]] = field(default_factory=list)  # of the training, if it was done in this job
    claim: tuple[str, float] | None = None  # the name and the percent of the accuracy that the file says it has


def from_file(config: Config, dataset: Dataset, device: torch.device) -> FloatModel:
    """The network of the checkpoint file that `config` names, checked against the configuration and the images.

    Raises `UserError` where the file, the configuration and the data do not fit each other.
    """
    checkpoint = read_checkpoint(config.checkpoint, config.cache, config.data.timeout)
    network = fitting_network(config, checkpoint)
    check_classes(network, checkpoint.path, dataset.name, len(dataset.classes))
    model = build_model(network.architecture, network.classes, **network.options)
    load_weights(model, checkpoint)
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    check_images_fit(model.eval(), dataset, device)
    constants = _constants(config, checkpoint, model, dataset)
    options = {"architecture": network.architecture, **network.options}
    as_configured = all(config.model.get(key) in (value, "auto") for key, value in options.items())
    name = config.model.get("name") if as_configured else f"{network.architecture}{network.options.get('depth', '')}"
    data = replace(config.data, mean=list(constants.mean), std=list(constants.std))
    config = replace(config, data=data, model={"name": name, **options})
    source = f"read from {checkpoint.path} ({network}, {network.classes} classes)"
    normalize = Normalizer(constants.mean, constants.std, device)
    return FloatModel(model, normalize, checkpoint.sha256, options, config, source, claim=checkpoint.claim)


def fitting_network(config: Config, checkpoint: Checkpoint) -> Identity:
    """The network that the file holds. Raises `UserError` where the user chose another one."""
    found = Identity(checkpoint.architecture, checkpoint.options, checkpoint.classes)
    for key, value in {"architecture": found.architecture, **found.options}.items():
        wanted = config.model.get(key)
        if wanted not in (value, "auto") and _chosen(config, key):
            name = f"{found.architecture}{found.options.get('depth', '')}"
            remedy = "model.shortcut=auto" if key == "shortcut" else f"model={name}"
            raise UserError(
                f"checkpoint={checkpoint.path} does not fit: it holds a {found}, and model.{key} is {wanted}. "
                f"Set {remedy}, or leave it out: the file decides then."
            )
    return found


def _chosen(config: Config, key: str) -> bool:
    """Whether the user chose an option of the network, on the command line or in a YAML file."""
    words = {word.lstrip("+").partition("=")[0] for word in config.command}
    default = Config().model.get(key)
    return bool(words & {"model", f"model.{key}"}) or config.model.get(key) not in (default, None)


def check_classes(network: Identity, path: Path, data: str, classes: int) -> None:
    """Raise `UserError` where the network tells more or fewer classes apart than the data has."""
    if network.classes != classes:
        raise UserError(
            f"checkpoint={path} does not fit: it tells {network.classes} classes apart, and the data ({data}) has "
            f"{classes}. {_data_advice(network.classes)}"
        )


def _data_advice(classes: int) -> str:
    if classes in DATA_BY_CLASSES:
        return f"Choose the data that it was trained on, {DATA_BY_CLASSES[classes]} for example."
    return f"Give the images that it was trained on, {classes} class folders, as data=image_folder data.root=..."


def _constants(config: Config, checkpoint: Checkpoint, model: nn.Module, dataset: Dataset) -> Constants:
    """The normalization that the user gave, else the file's own, else the known one that fits the network best."""
    stored, data = checkpoint.normalization, config.data
    if data.mean is not None and data.std is not None:
        given = named(tuple(data.mean), tuple(data.std), "the given constants")
        check_constants(model, dataset, given, "given by data.mean and data.std")
        return given
    if stored is not None:
        found = named(*stored, "the file's own constants")
        check_constants(model, dataset, found, "stored in the file")
    elif (chosen := choose_constants(model, dataset)) is not None:
        found = chosen
    else:
        found = Constants(f"the constants of {dataset.name}", dataset.mean, dataset.std)
        log.info("Normalization: %s. The network has no trained batch norm that would tell its own.", found)
    return Constants(found.name, tuple(data.mean or found.mean), tuple(data.std or found.std))


def check_images_fit(model: nn.Module, dataset: Dataset, device: torch.device) -> None:
    """Raise `UserError`, with the cause, where the network cannot take the images."""
    normalize = Normalizer(dataset.mean, dataset.std, device)
    try:
        with torch.no_grad():
            model(normalize(dataset.test_images[:1]))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        size = "x".join(map(str, dataset.test_images.shape[2:]))
        advice = "Set data.resize=32, or the size that it was trained on."
        if "view size is not compatible" in reason:
            advice = "Use x.flatten(1) or x.reshape(...) in its forward function instead of x.view(...)."
        raise UserError(
            f"The network does not take the images of {dataset.name} ({size} pixels): {reason}. {advice}"
        ) from error
