"""The float model of a job: read from a file, taken from the store, or trained and stored.

The store is content-addressed: `<cache>/float/<digest>/` holds the network that one training configuration
gives on one data set, so every job and every later sweep that asks for it finds it.
"""

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from ptq_exp.checkpoint_reader import Checkpoint, load_weights, read_checkpoint
from ptq_exp.config import PROJECT_ROOT, Config, digest
from ptq_exp.console import log
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.loader import Normalizer
from ptq_exp.errors import UserError
from ptq_exp.models import build_model
from ptq_exp.quantization.checked import load_checked, save_checked
from ptq_exp.training import TrainingState, resolve_recipe, train

SHIPPED = PROJECT_ROOT / "checkpoints"
Watch = Callable[[], AbstractContextManager[Any]]  # what watches a training


@dataclass
class FloatModel:
    """A float network on its device, ready to be evaluated and quantized."""

    model: nn.Module
    normalize: Normalizer
    digest: str  # SHA-256 (hex) of the training configuration and data, or of the file it came from
    options: dict[str, Any]  # what was really built: architecture, depth, shortcut
    config: Config  # with the recipe and the normalization really used
    source: str  # a sentence for the log
    history: list[dict[str, float]] = field(default_factory=list)  # of the training, if it was done in this job


def load_or_train(config: Config, dataset: Dataset, device: torch.device, watch: Watch = nullcontext) -> FloatModel:
    """The float model that `checkpoint` asks for.

    `auto` takes the stored network of this very training configuration and trains it where there is none;
    `train` trains afresh, inside the context manager that `watch` makes; anything else is a file. Raises `UserError`
    where a file is missing or does not fit.
    """
    if config.checkpoint not in ("auto", "train"):
        return _from_file(config, dataset, device)
    options = {key: value for key, value in config.model.items() if key != "name"}
    if options.get("shortcut") == "auto":
        options["shortcut"] = "conv"
    config = _with_normalization(resolve_recipe(config, dataset), dataset, None)
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
    entry = StoreEntry(config.cache / "float" / digest(identity)[:16], identity)
    # Before what the store may hold: the same configuration gives the same network on every machine.
    if config.checkpoint == "auto" and (file := shipped(config, options, dataset)):
        found = _from_file(replace(config, checkpoint=str(file)), dataset, device)
        found.source = f"shipped with ptq_exp ({file.relative_to(PROJECT_ROOT)}; checkpoint=train trains afresh)"
        return found
    stored = "best" if config.trainer.select.startswith("best") else "last"
    float_digest = digest(identity, stored)
    torch.manual_seed(config.seed)  # the initial weights
    model = build_model(classes=len(dataset.classes), **options).to(device)
    model.to(memory_format=torch.channels_last)
    normalize = Normalizer(config.data.mean or (), config.data.std or (), device)
    _check_images_fit(model, dataset, normalize)
    with entry.locked():
        if config.checkpoint == "train":
            entry.clear()
        history: list[dict[str, float]] = []
        if not entry.complete():
            with watch():
                state = train(model, dataset, normalize, config, entry.training_state(), entry.save_state)
            history = state.history
            entry.finish(state, _metadata(options, config, dataset))
        load_weights(model, read_checkpoint(str(entry.folder / f"{stored}.safetensors"), config.cache, 0))
    epoch = {"last": "last epoch", "best_test": "best epoch on the test set, so its accuracy is optimistic"}
    chosen = epoch.get(config.trainer.select, "best epoch on the validation images")
    source = f"{'trained' if history else 'found'} in the store ({entry.folder / stored}.safetensors, {chosen})"
    return FloatModel(model.eval(), normalize, float_digest, options, config, source, history)


def shipped(config: Config, options: dict[str, Any], dataset: Dataset) -> Path | None:
    """The checkpoint in this repository that the resolved `config` would train, or None.

    CIFAR-10 counts as the same data whether its images are lossless or were JPEG files, and a training as the same in
    any precision: the model card says which it was. A folder that is called cifar10 is not CIFAR-10.
    """
    if config.trainer.select != "last":
        return None

    def recipe(about: dict[str, Any]) -> list[Any]:
        groups = [{key: value for key, value in about[group].items() if value} for group in ("optimizer", "scheduler")]
        normalization = [[float(value) for value in about[key]] for key in ("mean", "std")]
        return [*groups, about["trainer"]["epochs"], about["trainer"]["batch_size"], about["seed"], normalization]

    wanted = recipe(asdict(config) | {"mean": config.data.mean, "std": config.data.std})
    whole = config.data.train_limit is None and config.data.validation_images == 0
    for path in sorted(SHIPPED.glob("*.safetensors")):
        _, about = load_checked(path)
        same_data = dataset.name == about["data"] and config.data.name in ("auto", about["data"]) and whole
        same_network = all(about.get(key) == value for key, value in options.items())
        if not same_network or recipe(about) != wanted:
            continue
        if same_data or dataset.fingerprint() == about["data_fingerprint"]:
            return path
    return None


def _check_images_fit(model: nn.Module, dataset: Dataset, normalize: Normalizer) -> None:
    """Raise `UserError` where the network cannot take images of this size."""
    try:
        with torch.no_grad():
            model.eval()(normalize(dataset.test_images[:1]))
    except RuntimeError as error:
        size = "x".join(map(str, dataset.test_images.shape[2:]))
        raise UserError(
            f"The network does not take the images of {dataset.name} ({size} pixels). Set data.resize=32."
        ) from error


def _from_file(config: Config, dataset: Dataset, device: torch.device) -> FloatModel:
    checkpoint = read_checkpoint(config.checkpoint, config.cache, config.data.timeout)
    options = _fitting_options(config, checkpoint, dataset)
    model = build_model(classes=checkpoint.classes, **options)
    load_weights(model, checkpoint)
    model.to(device).to(memory_format=torch.channels_last)
    config = _with_normalization(config, dataset, checkpoint)
    source = f"read from {checkpoint.path} ({_describe(options)}, {checkpoint.classes} classes)"
    normalize = Normalizer(config.data.mean or (), config.data.std or (), device)
    _check_images_fit(model, dataset, normalize)
    return FloatModel(model.eval(), normalize, checkpoint.sha256, options, config, source)


def _fitting_options(config: Config, checkpoint: Checkpoint, dataset: Dataset) -> dict[str, Any]:
    """The network's options by the file; `UserError` where the configuration or the data says otherwise."""
    found = {"architecture": checkpoint.architecture, **checkpoint.options}
    for key, value in found.items():
        wanted = config.model.get(key)
        if wanted not in (value, "auto"):
            remedy = "model.shortcut=auto" if key == "shortcut" else f"model={_group_option(found)}"
            raise UserError(
                f"checkpoint={checkpoint.path} does not fit: it holds a {_describe(found)}, "
                f"and model.{key} is {wanted}. Set {remedy}."
            )
    if checkpoint.classes != len(dataset.classes):
        raise UserError(
            f"checkpoint={checkpoint.path} does not fit: it tells {checkpoint.classes} classes apart, and the data "
            f"({dataset.name}) has {len(dataset.classes)}. Choose its data set, data=cifar10 for example."
        )
    return found


def _group_option(options: dict[str, Any]) -> str:
    return f"{options['architecture']}{options['depth']}"


def _describe(options: dict[str, Any]) -> str:
    name = {"resnet": "ResNet", "vgg": "VGG"}.get(options["architecture"], options["architecture"])
    shortcut = f" with {options['shortcut']} shortcuts" if "shortcut" in options else ""
    return f"{name}-{options.get('depth', '')}{shortcut}"


def _with_normalization(config: Config, dataset: Dataset, checkpoint: Checkpoint | None) -> Config:
    """Mean and std: as configured, else the checkpoint's where they are known, else the data set's."""
    source: Checkpoint | Dataset = checkpoint if checkpoint and checkpoint.mean is not None else dataset
    mean, std = source.mean, source.std
    if checkpoint and (config.data.mean is None or config.data.std is None):
        if source is dataset:
            whose = f"the constants of {dataset.name} (the checkpoint's are not known)"
        elif "mean" in checkpoint.metadata:
            whose = "the checkpoint's own constants"
        else:
            whose = "the constants of the project whose files look like this one (data.mean and data.std overrule them)"
        log.info("Normalization by %s: mean %s, std %s.", whose, list(mean or ()), list(std or ()))
    data = replace(config.data, mean=config.data.mean or list(mean or ()), std=config.data.std or list(std or ()))
    return replace(config, data=data)


def _metadata(options: dict[str, Any], config: Config, dataset: Dataset) -> dict[str, Any]:
    return {
        **options, "classes": list(dataset.classes), "data": dataset.name, "mean": config.data.mean,
        "std": config.data.std, "seed": config.seed, "torch": str(torch.__version__),
    }  # fmt: skip


class StoreEntry:
    """One folder of the store. `metadata.json` is written last: an entry with it is complete."""

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.folder, self.identity = folder, identity

    def locked(self) -> FileLock:
        """A lock that jobs wait on while another one trains this network; a killed process gives it up."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{self.folder}.lock")
        try:
            lock.acquire(timeout=0)
            lock.release()
        except Timeout:
            log.info("Waiting for another job that trains the same float model (%s).", self.folder)
        return lock

    def complete(self) -> bool:
        """Whether both checkpoints are there and as they were written."""
        try:
            sums: dict[str, str] = json.loads((self.folder / "metadata.json").read_text())["sha256"]
            return all(_sha256(self.folder / name) == value for name, value in sums.items())
        except (OSError, ValueError, KeyError):
            return False

    def clear(self) -> None:
        """Forget the network and any unfinished training."""
        for name in ("metadata.json", "training-state.pt"):
            (self.folder / name).unlink(missing_ok=True)

    def training_state(self) -> TrainingState | None:
        """Where a killed training stopped, or None."""
        path = self.folder / "training-state.pt"
        try:
            with zipfile.ZipFile(path) as content:  # torch does not look at the checksums inside
                if damaged := content.testzip():
                    raise ValueError(f"{damaged} is damaged")
            return TrainingState(**torch.load(path, map_location="cpu", weights_only=True))
        except FileNotFoundError:
            return None
        except Exception as error:  # a broken file of any kind: training starts again
            log.warning("The unfinished training in %s cannot be read (%s): starting again.", path, error)
            return None

    def save_state(self, state: TrainingState) -> None:
        """Keep an unfinished training."""
        buffer = io.BytesIO()  # torch's own writing does not say OSError where the disk is full
        torch.save(vars(state), buffer)
        write_atomically(self.folder / "training-state.pt", lambda path: path.write_bytes(buffer.getbuffer()))

    def finish(self, state: TrainingState, metadata: dict[str, Any]) -> None:
        """Store the last and the best epoch's weights and the history, and mark the entry complete."""
        epochs = {"last": (state.model, state.epoch), "best": (state.best, state.best_epoch)}
        for name, (weights, epoch) in epochs.items():
            top1 = {key: value for key, value in state.history[epoch - 1].items() if key.endswith("_top1")}
            save_weights(self.folder / f"{name}.safetensors", weights, metadata | {"epoch": epoch} | top1)
        sums = {f"{name}.safetensors": _sha256(self.folder / f"{name}.safetensors") for name in epochs}
        content = json.dumps(
            {"identity": self.identity, **metadata, "history": state.history, "sha256": sums}, indent=1
        )
        write_atomically(self.folder / "metadata.json", lambda path: path.write_text(content))
        (self.folder / "training-state.pt").unlink(missing_ok=True)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 (hex) of the names and values of a network's state."""
    sha = hashlib.sha256()
    for name, value in model.state_dict().items():
        sha.update(name.encode())
        sha.update(value.cpu().contiguous().numpy().data)
    return sha.hexdigest()


def save_weights(path: Path, weights: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a safetensors file that `read_checkpoint` reads; `metadata` must be JSON."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    write_atomically(path, lambda temporary: save_checked(tensors, temporary, metadata))


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: `path` is never half-written."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        write(Path(name))
        Path(name).chmod(0o644)  # a temporary file is private to its owner, a finished one is not
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
