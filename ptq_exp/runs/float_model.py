"""The float network to be quantized: read from a checkpoint file or the store, or trained and stored."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ptq_exp.base.files import digest
from ptq_exp.base.tensors import load_checked
from ptq_exp.config import Config
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.loader import Normalizer
from ptq_exp.evaluation.accuracy import evaluate
from ptq_exp.networks import build_model, custom
from ptq_exp.networks.reading.checkpoint import KEYWORDS
from ptq_exp.networks.store import StoreEntry, weights_digest
from ptq_exp.runs.checkpoint_file import from_file, verified_constants
from ptq_exp.runs.fitting import FloatModel, fit_images
from ptq_exp.runs.shipped import shipped_instead
from ptq_exp.training.loop import TrainingState, resolve_recipe, train

Watch = Callable[[], AbstractContextManager[Any]]  # the context in which a training runs


def load_or_train(config: Config, dataset: Dataset, device: torch.device, watch: Watch = nullcontext) -> FloatModel:
    """The float model that `checkpoint` selects.

    `auto` uses the stored network of the same training configuration and trains one if there is none. `train` always
    trains. `pretrained` keeps the weights with which the network is built. Anything else is a file. A training runs
    inside the context manager that `watch` returns. Raises `UserError` if a file is missing or does not fit.
    """
    if config.checkpoint not in KEYWORDS:
        return from_file(config, dataset, device)
    options = {key: value for key, value in config.model.items() if key != "name"}
    if options.get("shortcut") == "auto":
        options["shortcut"] = "conv"
    torch.manual_seed(config.seed)  # the initial weights
    model = build_model(classes=len(dataset.classes), **options)
    config, dataset = fit_images(model, config, dataset, device)
    if config.checkpoint == "pretrained":
        return _as_built(model, options, config, dataset, device)
    training = resolve_recipe(config.training, dataset.recipe)
    config = replace(config, trainer=training.trainer, optimizer=training.optimizer, scheduler=training.scheduler)
    data = replace(config.data, mean=config.data.mean or list(dataset.mean), std=config.data.std or list(dataset.std))
    config = replace(config, data=data)
    identity = _identity(config, options, dataset)
    entry = StoreEntry(config.cache / "float" / digest(identity)[:16], identity)
    # The shipped network precedes the store, so that a configuration gives the same network on every machine.
    if config.checkpoint == "auto" and (found := shipped_instead(config, options, dataset, device, entry)):
        return found
    stored = "best" if config.trainer.select.startswith("best") else "last"
    float_digest = digest(identity, stored)
    normalize = Normalizer(config.data.mean or (), config.data.std or (), device)
    with entry.locked():
        if config.checkpoint == "train":
            entry.clear()
        history: list[dict[str, float]] = []
        if not entry.complete():
            _, images, labels = dataset.monitored()
            state = entry.training_state(TrainingState) or TrainingState()
            with watch():
                for done in train(
                    model, dataset, normalize, training,
                    lambda network: evaluate(network, images, labels, normalize).top1, state,
                ):  # fmt: skip
                    entry.save_state(done)
            history = state.history
            entry.finish(state.networks(), history, _metadata(options, config, dataset))
        model.load_state_dict(load_checked(entry.folder / f"{stored}.safetensors")[0])
    epoch = {"last": "last epoch", "best_test": "best epoch on the test set, so its accuracy is optimistic"}
    chosen = epoch.get(config.trainer.select, "best epoch on the validation images")
    source = f"{'trained' if history else 'found'} in the store ({entry.folder / stored}.safetensors, {chosen})"
    return FloatModel(model.eval(), normalize, float_digest, options, config, dataset, source, history)


def _as_built(
    model: nn.Module, options: dict[str, Any], config: Config, dataset: Dataset, device: torch.device
) -> FloatModel:
    """The network with the weights that its constructor gave it, such as those of a library."""
    constants = verified_constants(config, None, model.eval(), dataset)
    config = replace(config, data=replace(config.data, mean=list(constants.mean), std=list(constants.std)))
    source = f"built with its own weights ({config.model['name']})"
    normalize = Normalizer(constants.mean, constants.std, device)
    return FloatModel(model, normalize, weights_digest(model), options, config, dataset, source)


def _identity(config: Config, options: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Everything that determines the trained weights. The store identifies a network by the digest of this."""
    identity: dict[str, Any] = {
        "model": custom.identity(options),
        "data": dataset.fingerprint(),
        "normalization": [config.data.mean, config.data.std],
        "augmentation": [dataset.recipe.crop_padding, dataset.recipe.flip],
        "optimizer": config.optimizer,
        "scheduler": config.scheduler,
        "trainer": [config.trainer.epochs, config.trainer.batch_size, config.trainer.precision],
        "seed": config.seed,
    }
    if config.trainer.fused:
        identity["trainer"].append("fused")
    return identity


def _metadata(options: dict[str, Any], config: Config, dataset: Dataset) -> dict[str, Any]:
    return {
        **options, "classes": list(dataset.classes), "data": dataset.name, "mean": config.data.mean,
        "std": config.data.std, "seed": config.seed, "torch": str(torch.__version__),
    }  # fmt: skip
