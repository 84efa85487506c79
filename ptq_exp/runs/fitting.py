"""A float network and the images, fitted to each other: channels, memory format, outputs."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.config import Config
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.loader import Normalizer
from ptq_exp.networks.graph import check_trace
from ptq_exp.networks.graph.calling import channels_last, contiguous_images


@dataclass
class FloatModel:
    """A float network on its device, ready for evaluation and quantization."""

    model: nn.Module
    normalize: Normalizer
    digest: str  # SHA-256 (hex) of the training configuration and data, or of the file it came from
    options: dict[str, Any]  # of the network that was built: architecture, depth, shortcut
    config: Config  # with the network, recipe and normalization that were used
    dataset: Dataset  # with as many channels as the network takes
    source: str  # a sentence for the log
    history: list[dict[str, float]] = field(default_factory=list)  # of the training, if this job trained the network
    claim: tuple[str, float] | None = None  # the accuracy stated in the file: its name and its value in percent


def fit_images(model: nn.Module, config: Config, dataset: Dataset, device: torch.device) -> tuple[Config, Dataset]:
    """Move `model` to its device, in place, and return the images with as many channels as it takes: those of its first
    convolution, or those that work.

    Raises `UserError`, with the cause, if the network does not accept the images or has another number of outputs than
    the data has classes.
    """
    channels_last(model.to(device))
    failures: list[UserError] = []
    for channels in dict.fromkeys((input_channels(model), 3, 1)):
        try:
            own, images = config, dataset
            if channels in (1, 3):
                images = dataset.with_channels(channels)
                own = replace(config, data=config.data.for_channels(channels))
            check_images_fit(model, images, device)
            return own, images
        except UserError as error:
            failures.append(error)
    raise failures[0]


def input_channels(model: nn.Module) -> int | None:
    """The channels that the first convolution takes, or None without one."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return first.in_channels if first is not None else None


def check_images_fit(model: nn.Module, dataset: Dataset, device: torch.device) -> None:
    """Raise `UserError`, with the cause, unless the network returns one output per class for the images.

    A network that calls `view` on images computes in PyTorch's default memory format from now on.
    """
    image = Normalizer(dataset.mean, dataset.std, device)(dataset.test_images[:1])
    try:
        logits = output_of(model, image)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        size = "x".join(map(str, dataset.test_images.shape[2:]))
        raise UserError(
            f"The network does not accept the images of {dataset.name} ({size} pixels): {reason}. "
            f"Set data.resize=32, or the image size that the network was trained on."
        ) from error
    if isinstance(logits, Tensor) and logits.shape == (len(dataset.classes),):
        raise UserError(
            f"The network returns {tuple(logits.shape)} for one image, without the dimension of the images. squeeze() "
            f"without a dimension removes it: use flatten(1)."
        )
    if not isinstance(logits, Tensor) or logits.shape != (1, len(dataset.classes)):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"The network returns {shape} for one image, but {dataset.name} has {len(dataset.classes)} classes, so "
            f"(1, {len(dataset.classes)}) is needed. Give it the number of classes, for example "
            f"+model.args.num_classes={len(dataset.classes)}."
        )
    with _evaluation_mode(model):
        check_trace(model, image)


def output_of(model: nn.Module, image: Tensor) -> object:
    """The network's output. One that calls `view` on images computes in the default memory format from now on."""
    try:
        return _logits(model, image)
    except RuntimeError as error:
        if "view size is not compatible" not in str(error):
            raise
    contiguous_images(model)
    return _logits(model, image)


def _logits(model: nn.Module, image: Tensor) -> object:
    with _evaluation_mode(model), torch.no_grad():
        return model(image)


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while: batch norm cannot train on a single image."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
