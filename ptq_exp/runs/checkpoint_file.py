"""The float network of a checkpoint file, checked against the configuration and the images."""

from dataclasses import replace
from pathlib import Path

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
from ptq_exp.networks.reading import read_weights
from ptq_exp.networks.reading.fitting import Fit, fit
from ptq_exp.networks.reading.identification import Identity, identify
from ptq_exp.networks.reading.weights_file import WeightsFile
from ptq_exp.runs.fitting import FloatModel, fit_images

DATA_BY_CLASSES = {10: "data=cifar10", 100: "data=cifar100"}


def from_file(config: Config, dataset: Dataset, device: torch.device) -> FloatModel:
    """The network of the checkpoint file that `config` names, checked against the configuration and the images.

    Raises `UserError` if the file, the configuration and the data do not fit each other.
    """
    file = read_weights(config.checkpoint, config.cache, config.data.timeout)
    network = identified(config, file, len(dataset.classes))
    check_classes(network, file.path, dataset.name, len(dataset.classes))
    model, fitted = fitted_network(network, file)
    log.info("%s", fitted.how)
    config, dataset = fit_images(model.eval(), config, dataset, device)
    constants = verified_constants(config, _stated(file, fitted), model, dataset)
    options = {"architecture": network.architecture, **network.options}
    as_configured = all(config.model.get(key) in (value, "auto") for key, value in options.items())
    name = config.model.get("name") if as_configured else f"{network.architecture}{network.options.get('depth', '')}"
    data = replace(config.data, mean=list(constants.mean), std=list(constants.std))
    config = replace(config, data=data, model={"name": name, **options})
    source = f"read from {file.path} ({network}, {network.classes} classes)"
    normalize = Normalizer(constants.mean, constants.std, device)
    return FloatModel(model, normalize, file.sha256, options, config, dataset, source, claim=file.claim)


def identified(config: Config, file: WeightsFile, classes: int) -> Identity:
    """The network of a file: the user's own, built for `classes` classes, or the known one that fits.

    Raises `UserError` if the user chose a different one.
    """
    if config.model.get("architecture") == "custom":
        options = {key: config.model.get(key) for key in ("target", "args")}
        return Identity("custom", options, classes)
    if file.metadata.get("architecture") == "custom":
        target = file.metadata.get("target")
        raise UserError(
            f"checkpoint={file.path} holds a network of its user's, {target}. A file does not decide which code runs. "
            f"Set model=custom model.target={target}."
        )
    found = Identity.stored(file.metadata) or identify(file)
    for key, value in {"architecture": found.architecture, **found.options}.items():
        wanted = config.model.get(key)
        if wanted not in (value, "auto") and _chosen(config, key):
            remedy = {"shortcut": "model.shortcut=auto", "channels": "model.channels=null"}.get(
                key, f"model={found.architecture}{found.options.get('depth', '')}"
            )
            raise UserError(
                f"checkpoint={file.path} does not fit: it holds a {found}, but model.{key} is {wanted}. "
                f"Set {remedy}, or leave it out so that the file decides."
            )
    return found


def fitted_network(network: Identity, file: WeightsFile) -> tuple[nn.Module, Fit]:
    """The network with the weights of the file. Raises `UserError` if they do not fit."""
    model = build_model(network.architecture, network.classes, **network.options)
    fitted = fit(model, file)
    model.load_state_dict(fitted.weights, strict=False)
    return model, fitted


def _chosen(config: Config, key: str) -> bool:
    """Whether the user chose an option of the network, on the command line or in a YAML file."""
    words = config.typed.keys()
    default = Config().model.get(key)
    return bool(words & {"model", f"model.{key}"}) or config.model.get(key) not in (default, None)


def check_classes(network: Identity, path: Path, data: str, classes: int) -> None:
    """Raise `UserError` if the network and the data have different numbers of classes."""
    if network.classes != classes:
        raise UserError(
            f"checkpoint={path} does not fit: the network has {network.classes} classes, but the data ({data}) has "
            f"{classes}. {_data_advice(network.classes)}"
        )


def _data_advice(classes: int) -> str:
    if classes in DATA_BY_CLASSES:
        return f"Choose the data that it was trained on, for example {DATA_BY_CLASSES[classes]}."
    return f"Use its training images, in {classes} class folders, with data=image_folder data.root=..."


def _stated(file: WeightsFile, fitted: Fit) -> Constants | None:
    """The normalization that the file states, or None."""
    if fitted.normalizes:
        return Constants("the network's own layer, which normalizes values from 0 to 1", (0.0,) * 3, (1.0,) * 3)
    about = file.metadata
    if "mean" not in about or "std" not in about:
        return None
    return named(tuple(about["mean"]), tuple(about["std"]), "the file's own constants")


def verified_constants(config: Config, stated: Constants | None, model: nn.Module, dataset: Dataset) -> Constants:
    """The normalization given by the user, else the one `stated` in the file, else the known one that fits best.

    The network's batch norms are checked with it, see `batch_norm_check`.
    """
    data = config.data
    if data.mean is not None and data.std is not None:
        given = named(tuple(data.mean), tuple(data.std), "the given constants")
        check_constants(model, dataset, given, "given by data.mean and data.std")
        return given
    if stated is not None:
        found = stated
        check_constants(model, dataset, found, "stored in the file")
    elif (chosen := choose_constants(model, dataset)) is not None:
        found = chosen
    else:
        found = Constants(f"the constants of {dataset.name}", dataset.mean, dataset.std)
        log.info("Normalization: %s. The network has no trained batch norm to infer the constants from.", found)
    return Constants(found.name, tuple(data.mean or found.mean), tuple(data.std or found.std))
