"""`ptq_exp.float_network`: the data and the float network of a job, as Python objects."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ptq_exp.base.console import log
from ptq_exp.base.errors import UserError
from ptq_exp.config import Config, network_name, validate
from ptq_exp.config.compose import compose
from ptq_exp.config.keywords import check_types
from ptq_exp.data.loader import Normalizer
from ptq_exp.networks import custom
from ptq_exp.runs.device import pick_device
from ptq_exp.runs.fitting import FloatModel
from ptq_exp.runs.float_model import load_or_train
from ptq_exp.runs.images import load_images

READ = ("model", "data", "optimizer", "scheduler", "trainer", "checkpoint", "device", "threads", "seed", "cache_dir")


@dataclass(frozen=True, repr=False)
class FloatNetwork:
    """A trained float network with its images, all on one device.

    `network` takes images that `normalize` has normalized, float32 (N, C, H, W), and returns logits (N, classes). The
    images are uint8 (N, C, H, W), the labels int64 (N,).
    """

    network: nn.Module
    normalize: Normalizer
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    about: dict[str, Any]  # how to build the network; `classes`, `mean` and `std`
    source: str  # where the weights come from

    @property
    def classes(self) -> list[str]:
        """The names of the classes."""
        return list(self.about["classes"])

    def __repr__(self) -> str:
        numbers = f"{len(self.train_images)} training and {len(self.test_images)} test images"
        return f"{self.about['name']}, {numbers} of {len(self.classes)} classes"


def float_network(words: tuple[str, ...]) -> FloatNetwork:
    """The float network and the images of `python run.py WORDS`."""
    config = configuration(words)
    if config.threads:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    dataset = load_images(config, device)
    if dataset.note:
        log.warning("%s", dataset.note)
    found = load_or_train(config, dataset, device)
    dataset, data = found.dataset, found.config.data
    about = {
        "name": name_of(found),
        "model": custom.as_stored(found.options), "classes": list(dataset.classes), "mean": list(data.mean or ()),
        "std": list(data.std or ()), "float_digest": found.digest,
    }  # fmt: skip
    return FloatNetwork(
        found.model, found.normalize, dataset.train_images, dataset.train_labels, dataset.test_images,
        dataset.test_labels, about, found.source,
    )  # fmt: skip


def name_of(found: FloatModel) -> str:
    """`resnet8`, or the name of a network of the user's."""
    options, model = found.options, found.config.model
    if options["architecture"] == "custom":
        return str(model.get("name") or network_name(model))
    return f"{options['architecture']}{options.get('depth', '')}"


def configuration(words: tuple[str, ...]) -> Config:
    """The configuration of words as typed on the command line. Raises `UserError` for one that has no effect here."""
    for word in words:
        key, equals, _ = word.lstrip("+").partition("=")
        if not equals:
            raise UserError(f"'{word}' is no option. Write it as on the command line, for example 'data=digits'.")
        if (group := key.partition(".")[0]) not in READ and group in {f.name for f in dataclasses.fields(Config)}:
            raise UserError(f"{key} has no effect on the float network. Allowed: {', '.join(sorted(READ))}.")
    config = compose(*words)
    check_types(Config, dataclasses.asdict(config))
    config.command = list(words)
    validate(config)
    return config
