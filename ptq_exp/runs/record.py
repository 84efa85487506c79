"""The record of a finished job."""

import dataclasses
import json
import platform
import time
from typing import Any

import torch
import yaml

from ptq_exp.base.errors import without_password
from ptq_exp.base.files import digest
from ptq_exp.base.machine import installed
from ptq_exp.base.options import flatten
from ptq_exp.base.text import write_text
from ptq_exp.config import Config
from ptq_exp.config.method import words_of
from ptq_exp.data.dataset import Dataset
from ptq_exp.reporting import JobStart
from ptq_exp.reporting.mlflow.store import commit
from ptq_exp.results.names import data_in_words, network_in_words
from ptq_exp.results.records import BitWidthResult, DatasetSummary, JobRecord
from ptq_exp.runs.device import hardware
from ptq_exp.runs.shared import Shared

PACKAGES = ("ptq_exp", "torch", "torchvision", "numpy", "hydra-core", "mlflow")
# MLflow's compare page would otherwise list the folder and the command line of two jobs first.
NOT_PARAMS = ("output_dir", "command", "overrides", "method", "searchpath", "search")  # the method is `quant.name`


def make_record(
    start: JobStart, config: Config, shared: Shared, device: torch.device, results: tuple[BitWidthResult, ...]
) -> JobRecord:
    """The record of a job that has just ended. Writes its resolved configuration to the artifacts."""
    ended, float_model, dataset = int(1000 * time.time()), shared.float_model, shared.dataset
    resolved = resolve(config, shared)
    write_text(
        start.folder / "artifacts" / "config.yaml", yaml.safe_dump(dataclasses.asdict(resolved), sort_keys=False)
    )
    params = parameters(resolved, shared)
    defaults = flatten(Config()) | {"quant.layer_bits": json.dumps({})}  # as in `parameters`
    # The job that trained the float network reports the training, once.
    history, float_model.history = tuple(float_model.history), []
    return JobRecord(
        title=title_of(config, dataset),
        name=start.name,
        method=tuple(words_of(config)),
        overrides=resolved.overrides,
        command=tuple(resolved.command),
        key=start.key,
        started=start.started,
        ended=ended,
        results=results,
        params=params,
        defaults={key: defaults.get(key) for key, value in params.items() if value != defaults.get(key)},
        tags=tags_of(config, shared, device),
        history=history,
        dataset=describe(dataset, config, shared.fingerprint),
        versions=versions(),
        register=config.tracking.register,
        folder=start.folder,
    )


def title_of(config: Config, dataset: Dataset) -> str:
    """`ResNet-20 on CIFAR-10: best`."""
    network = network_in_words(config.model, str(config.model["name"]))
    return f"{network} on {data_in_words(dataset.name)}: {config.quant.name}"


def resolve(config: Config, shared: Shared) -> Config:
    """The configuration with the network, recipe and normalization that were used, without passwords."""
    used = shared.float_model.config
    tracking = dataclasses.replace(config.tracking, uri=config.tracking.uri and without_password(config.tracking.uri))
    return dataclasses.replace(
        config, model=used.model, data=used.data, optimizer=used.optimizer, scheduler=used.scheduler,
        trainer=used.trainer, tracking=tracking, checkpoint=without_password(used.checkpoint),
        overrides=without_password(config.overrides), command=list(map(without_password, config.command)),
    )  # fmt: skip


def parameters(resolved: Config, shared: Shared) -> dict[str, Any]:
    """The resolved configuration by dotted keys, and the data set and network that were used."""
    plain = dataclasses.replace(resolved, quant=dataclasses.replace(resolved.quant, layer_bits={}))
    options = shared.float_model.options
    return {key: value for key, value in flatten(plain).items() if key.partition(".")[0] not in NOT_PARAMS} | {
        "quant.layer_bits": json.dumps(resolved.quant.layer_bits),  # its keys are patterns, not param names
        "data.used": shared.dataset.name,
        "model.used": " ".join(f"{key}={value}" for key, value in options.items()),
    }


def tags_of(config: Config, shared: Shared, device: torch.device) -> dict[str, str]:
    """The tags that distinguish runs of different networks, data and machines."""
    network, fingerprint = shared.network_digest, shared.fingerprint
    quant = dataclasses.replace(config.quant, name="")
    return {
        "digest": digest(shared.float_model.digest, network, fingerprint, quant, config.seed),
        "float_digest": shared.float_model.digest,
        "data_fingerprint": fingerprint,
        "hardware": f"{hardware(device)}, torch {torch.__version__}",
    }


def describe(dataset: Dataset, config: Config, fingerprint: str) -> DatasetSummary:
    """The data set as MLflow lists it among a run's inputs."""
    counts: dict[str, Any] = {"training images": len(dataset.train_images), "test images": len(dataset.test_images)}
    if dataset.validation_images is not None:
        counts["validation images"] = len(dataset.validation_images)
    source = "scikit-learn" if dataset.name == "digits" else str(config.data.folder)
    shape = "x".join(map(str, dataset.test_images.shape[1:]))
    profile = counts | {"classes": len(dataset.classes), "image": f"{shape} uint8"}
    return DatasetSummary(dataset.name, fingerprint, source, profile)


def versions() -> dict[str, str]:
    """The versions of all software that a result may depend on."""
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    others = {"system": system, "commit": commit().get("git.commit", "")}
    return {"Python": platform.python_version()} | installed(PACKAGES) | others
