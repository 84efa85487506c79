"""The networks that are shipped with this repository, in place of a training."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ptq_exp.base.console import log
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.base.tensors import load_checked
from ptq_exp.config import Config, swept_keys
from ptq_exp.data.dataset import Dataset
from ptq_exp.networks.store import StoreEntry
from ptq_exp.runs.checkpoint_file import from_file
from ptq_exp.runs.fitting import FloatModel

SHIPPED = PROJECT_ROOT / "checkpoints"


def shipped_instead(
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
