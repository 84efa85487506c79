"""The float network to be quantized: read from a checkpoint file or the store, or trained and stored."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptq_exp.base.console import log
from ptq_exp.base.errors import UserError
from ptq_exp.base.files import digest
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.base.tensors import load_checked
from ptq_exp.config import Config, swept_keys
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.loader import Normalizer
from ptq_exp.data.normalization import Constants, named
from ptq_exp.evaluation.accuracy import evaluate
from ptq_exp.evaluation.batch_norm_check import check_constants, choose_constants
from ptq_exp.networks import build_model
from ptq_exp.networks.identification import Identity
from ptq_exp.networks.reading import Checkpoint, load_weights, read_checkpoint
from ptq_exp.networks.store import StoreEntry
from ptq_exp.training.loop import TrainingState, resolve_recipe, train

SHIPPED = PROJECT_ROOT / "checkpoints"
Watch = Callable[[], AbstractContextManager[Any]]  # the context in which a training runs

DATA_BY_CLASSES = {10: "data=cifar10", 100: "data=cifar100"}


@dataclass
class FloatModel:
    """A float network on its device, ready for evaluation and quantization."""

    model: nn.Module
    normalize: Normalizer
    digest: str  # SHA-256 (hex) of the training configuration and data, or of the file it came from
    options: dict[str, Any]  # of the network that was built: architecture, depth, shortcut
    config: Config  # with the network, recipe and normalization that were used
    source: str  # a sentence for the log
    history: list[dict[str, float]] = field(default_factory=list)  # of the training, if this job trained the network
    claim: tuple[str, float] | None = None  # the accuracy stated in the file: its name and its value in percent


def load_or_train(config: Config, dataset: Dataset, device: torch.device, watch: Watch = nullcontext) -> FloatModel:
    """The float model that `checkpoint` selects.

    `auto` uses the stored network of the same training configuration and trains one if there is none. `train` always
    trains. Anything else is a file. A training runs inside the context manager that `watch` returns. Raises
    `UserError` if a file is missing or does not fit.
    """
    if config.checkpoint not in ("auto", "train"):
        return from_file(config, dataset, device)
    options = {key: value for key, value in config.model.items() if key != "name"}
    if options.get("shortcut") == "auto":
        options["shortcut"] = "conv"
    training = resolve_recipe(config.training, dataset.recipe)
    config = replace(config, trainer=training.trainer, optimizer=training.optimizer, scheduler=training.scheduler)
    data = replace(config.data, mean=config.data.mean or list(dataset.mean), std=config.data.std or list(dataset.std))
    config = replace(config, data=data)
    identity = _identity(config, options, dataset)
    entry = StoreEntry(config.cache / "float" / digest(identity)[:16], identity)
    # The shipped network precedes the store, so that a configuration gives the same network on every machine.
    if config.checkpoint == "auto" and (found := _shipped_instead(config, options, dataset, device, entry)):
        return found
    stored = "best" if config.trainer.select.startswith("best") else "last"
    float_digest = digest(identity, stored)
    torch.manual_seed(config.seed)  # the initial weights
    model = build_model(classes=len(dataset.classes), **options).to(device)
    model.to(memory_format=torch.channels_last)
    normalize = Normalizer(config.data.mean or (), config.data.std or (), device)
    check_images_fit(model, dataset, device)
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
    return FloatModel(model.eval(), normalize, float_digest, options, config, source, history)


def _identity(config: Config, options: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Everything that determines the trained weights. The store identifies a network by the digest of this."""
    identity: dict[str, Any] = {
        "model": options,
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


def _shipped_instead(
    config: Config, options: dict[str, Any], dataset: Dataset, device: torch.device, entry: StoreEntry
) -> FloatModel | None:
    """The shipped network, or None if it does not replace this training.

    It is not used in a sweep over seeds, because it belongs to one seed and the others would be compared with it.
    Without a GPU, it also replaces a training that differs only in the selected epoch, because training takes hours.
    """
    last_epoch = replace(config, trainer=replace(config.trainer, select="last"))
    other_epoch = config.trainer.select == "best_test" and device.type == "cpu" and not entry.complete()
    file = shipped(last_epoch if other_epoch else config, options, dataset)
    if file is None:
        return None
    if "seed" in swept_keys():
        log.info(
            "This sweep varies the seed, so every seed trains its own network; the shipped network belongs to seed %d. "
            "To keep one network and vary the calibration images, sweep quant.calibration_seed.", config.seed,
        )  # fmt: skip
        return None
    found = from_file(replace(last_epoch, checkpoint=str(file)), dataset, device)
    found.source = f"shipped with ptq_exp ({file.relative_to(PROJECT_ROOT)}; checkpoint=train trains a new one)"
    if other_epoch:
        log.warning(
            "Without a GPU this training would take hours, so the shipped network is used instead. It was trained with "
            "the same recipe, but it is the last epoch, not the best one on the test set. checkpoint=train trains as "
            "configured."
        )
    return found


def shipped(config: Config, options: dict[str, Any], dataset: Dataset) -> Path | None:
    """The checkpoint in this repository that matches the resolved training `config`, or None.

    CIFAR-10 counts as the same data whether its images are lossless or from JPEG files. Trainings in different
    precisions also match; the model card states the precision. A folder named cifar10 is not CIFAR-10.
    """
    if config.trainer.select != "last":
        return None

    def recipe(about: dict[str, Any]) -> list[Any]:
        groups = [{key: value for key, value in about[group].items() if value} for group in ("optimizer", "scheduler")]
        normalization = [[float(value) for value in about[key]] for key in ("mean", "std")]
        return [*groups, about["trainer"]["epochs"], about["trainer"]["batch_size"], about["seed"], normalization]

    wanted = recipe(asdict(config) | {"mean": config.data.mean, "std": config.data.std})
    whole = config.data.train_limit is None and config.data.validation_images == 0 and config.data.resize is None
    for path in sorted(SHIPPED.glob("*.safetensors")):
        _, about = load_checked(path)
        same_data = dataset.name == about["data"] and config.data.name in ("auto", about["data"]) and whole
        same_network = all(about.get(key) == value for key, value in options.items())
        if not same_network or recipe(about) != wanted:
            continue
        if same_data or dataset.fingerprint() == about["data_fingerprint"]:
            return path
    return None


def _metadata(options: dict[str, Any], config: Config, dataset: Dataset) -> dict[str, Any]:
    return {
        **options, "classes": list(dataset.classes), "data": dataset.name, "mean": config.data.mean,
        "std": config.data.std, "seed": config.seed, "torch": str(torch.__version__),
    }  # fmt: skip


def from_file(config: Config, dataset: Dataset, device: torch.device) -> FloatModel:
    """The network of the checkpoint file that `config` names, checked against the configuration and the images.

    Raises `UserError` if the file, the configuration and the data do not fit each other.
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
    """The network in the file. Raises `UserError` if the user chose a different one."""
    found = Identity(checkpoint.architecture, checkpoint.options, checkpoint.classes)
    for key, value in {"architecture": found.architecture, **found.options}.items():
        wanted = config.model.get(key)
        if wanted not in (value, "auto") and _chosen(config, key):
            name = f"{found.architecture}{found.options.get('depth', '')}"
            remedy = "model.shortcut=auto" if key == "shortcut" else f"model={name}"
            raise UserError(
                f"checkpoint={checkpoint.path} does not fit: it holds a {found}, but model.{key} is {wanted}. "
                f"Set {remedy}, or leave it out so that the file decides."
            )
    return found


def _chosen(config: Config, key: str) -> bool:
    """Whether the user chose an option of the network, on the command line or in a YAML file."""
    words = {word.lstrip("+").partition("=")[0] for word in config.command}
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


def _constants(config: Config, checkpoint: Checkpoint, model: nn.Module, dataset: Dataset) -> Constants:
    """The normalization given by the user, else the one in the file, else the known one that fits the network best."""
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
        log.info("Normalization: %s. The network has no trained batch norm to infer the constants from.", found)
    return Constants(found.name, tuple(data.mean or found.mean), tuple(data.std or found.std))


def check_images_fit(model: nn.Module, dataset: Dataset, device: torch.device) -> None:
    """Raise `UserError`, with the cause, if the network does not accept the images."""
    normalize = Normalizer(dataset.mean, dataset.std, device)
    try:
        with torch.no_grad():
            model(normalize(dataset.test_images[:1]))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        size = "x".join(map(str, dataset.test_images.shape[2:]))
        advice = "Set data.resize=32, or the image size that the network was trained on."
        if "view size is not compatible" in reason:
            advice = "Use x.flatten(1) or x.reshape(...) in its forward function instead of x.view(...)."
        raise UserError(
            f"The network does not accept the images of {dataset.name} ({size} pixels): {reason}. {advice}"
        ) from error
