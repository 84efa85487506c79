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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from ptq_exp.base.console import log
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.base.tensors import load_checked, save_checked
from ptq_exp.config import Config, digest, swept_keys
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.loader import Normalizer
from ptq_exp.networks import build_model
from ptq_exp.runs.float_model import FloatModel, check_images_fit, from_file
from ptq_exp.training.loop import TrainingState, resolve_recipe, train

SHIPPED = PROJECT_ROOT / "checkpoints"
Watch = Callable[[], AbstractContextManager[Any]]  # what watches a training


def load_or_train(config: Config, dataset: Dataset, device: torch.device, watch: Watch = nullcontext) -> FloatModel:
    """The float model that `checkpoint` asks for.

    `auto` takes the stored network of this very training configuration and trains it where there is none;
    `train` trains afresh, inside the context manager that `watch` makes; anything else is a file. Raises `UserError`
    where a file is missing or does not fit.
    """
    if config.checkpoint not in ("auto", "train"):
        return from_file(config, dataset, device)
    options = {key: value for key, value in config.model.items() if key != "name"}
    if options.get("shortcut") == "auto":
        options["shortcut"] = "conv"
    config = resolve_recipe(config, dataset)
    data = replace(config.data, mean=config.data.mean or list(dataset.mean), std=config.data.std or list(dataset.std))
    config = replace(config, data=data)
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
            with watch():
                state = train(model, dataset, normalize, config, entry.training_state(), entry.save_state)
            history = state.history
            entry.finish(state, _metadata(options, config, dataset))
        model.load_state_dict(load_checked(entry.folder / f"{stored}.safetensors")[0])
    epoch = {"last": "last epoch", "best_test": "best epoch on the test set, so its accuracy is optimistic"}
    chosen = epoch.get(config.trainer.select, "best epoch on the validation images")
    source = f"{'trained' if history else 'found'} in the store ({entry.folder / stored}.safetensors, {chosen})"
    return FloatModel(model.eval(), normalize, float_digest, options, config, source, history)


def _shipped_instead(
    config: Config, options: dict[str, Any], dataset: Dataset, device: torch.device, entry: "StoreEntry"
) -> FloatModel | None:
    """The shipped network, where it stands in for a training.

    In a sweep over seeds it does not: it is one seed's, and the others would be compared with it. Without a GPU it also
    stands in for a training that differs only in the epoch that is kept, since that takes hours.
    """
    last_epoch = replace(config, trainer=replace(config.trainer, select="last"))
    other_epoch = config.trainer.select == "best_test" and device.type == "cpu" and not entry.complete()
    file = shipped(last_epoch if other_epoch else config, options, dataset)
    if file is None:
        return None
    if "seed" in swept_keys():
        log.info(
            "This sweep varies the seed, so every seed trains its own network: the shipped one is seed %d's. To keep "
            "one network and vary the calibration images, sweep quant.calibration_seed.", config.seed,
        )  # fmt: skip
        return None
    found = from_file(replace(last_epoch, checkpoint=str(file)), dataset, device)
    found.source = f"shipped with ptq_exp ({file.relative_to(PROJECT_ROOT)}; checkpoint=train trains afresh)"
    if other_epoch:
        log.warning(
            "Without a GPU this training would take hours: the shipped network stands in. It was trained by the same "
            "recipe and holds the last epoch, not the best one on the test set. checkpoint=train trains as configured."
        )
    return found


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
