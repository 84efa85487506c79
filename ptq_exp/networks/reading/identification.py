"""Identification of the known network of a state dict, by the names and shapes of its tensors."""

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptq_exp.base.errors import UserError
from ptq_exp.networks import allowed_options, architectures, build_model
from ptq_exp.networks.reading.fitting import HOW_TO_NAME_THE_CLASS, match
from ptq_exp.networks.reading.renaming import Shapes, describe, differences, renamed, shapes_of
from ptq_exp.networks.reading.unwrapping import parts, together
from ptq_exp.networks.reading.weights_file import WeightsFile

RELATED = 0.5  # share of a family's tensors that a file must have for its differences to be listed


@dataclass(frozen=True)
class Identity:
    """A known network, given by the arguments of `build_model`."""

    architecture: str
    options: dict[str, Any]
    classes: int

    @classmethod
    def stored(cls, metadata: dict[str, Any]) -> "Identity | None":
        """The network named in the metadata of our own files, or None if it names no known network."""
        architecture = metadata.get("architecture")
        if architecture == "custom" or architecture not in architectures() or "classes" not in metadata:
            return None  # a file does not decide which code of the user runs
        options = {name: metadata[name] for name in allowed_options(metadata["architecture"]) if name in metadata}
        classes = metadata["classes"]  # their names, or how many in the shipped files
        return cls(metadata["architecture"], options, classes if isinstance(classes, int) else len(classes))

    def __str__(self) -> str:
        """`ResNet-20 with pad shortcuts`."""
        name = {"resnet": "ResNet", "vgg": "VGG"}.get(self.architecture)
        if self.architecture == "custom":
            return str(self.options["target"])
        if name is None:
            return self.architecture
        parts = [f"{self.options['shortcut']} shortcuts"] if "shortcut" in self.options else []
        if channels := self.options.get("channels"):
            parts.append(f"{'-'.join(map(str, channels))} channels" if len(channels) <= 5 else "other channels")
        return f"{name}-{self.options.get('depth', '')}{' with ' if parts else ''}{' and '.join(parts)}"

    def network(self) -> nn.Module:
        """The network without values, on the meta device."""
        with torch.device("meta"):
            return build_model(self.architecture, self.classes, **self.options)

    def shapes(self) -> Shapes:
        """The names and shapes of its state dict."""
        return shapes_of(self.network().state_dict())


def identify(file: WeightsFile) -> Identity:
    """The known network that fits the shapes of the weights in a file, whatever their names are.

    The function `guess` of each family returns the options of its closest networks, and `match` decides. Names that
    fit come before tensors that fit in order. Raises `UserError`, with a description of the file, if none or several
    networks fit.
    """
    found, path = shapes_of(file.weights), file.path
    guesses = list(_guesses(found))
    if one := _fitting(guesses, found, path):
        return one
    for part in parts(file.weights).values():
        for identity in _guesses(shapes := shapes_of(part)):
            if (fitting := match(identity.shapes(), shapes, path)) and not fitting.in_order:
                return identity
    for weights in together(file.beside.read()):
        if one := _fitting(_guesses(shapes := shapes_of(weights)), shapes, path):
            return one
    described = f"checkpoint={path} contains no known network: {describe(shapes_of(file.original))}."
    related = [identity for identity in guesses if _share(identity.shapes(), found) >= RELATED]
    if related:
        closest = max(related, key=lambda identity: _share(identity.shapes(), found))
        problems = differences(closest.shapes(), renamed(found, closest.shapes()))
        described += f" The closest is a {closest}, but it does not fit. {problems}."
    raise UserError(
        f"{described} The known networks are the CIFAR ResNets (20, 32, 44, 56, 110 layers and the like) and VGGs of "
        f"conf/model, of any width. {HOW_TO_NAME_THE_CLASS}"
    )


def _fitting(guesses: Iterable[Identity], found: Shapes, path: Path) -> Identity | None:
    """The one of `guesses` that fits, or None. Raises `UserError` if several fit, and only in order."""
    matches = [(identity, match(identity.shapes(), found, path)) for identity in guesses]
    for identity, fitting in matches:
        if fitting and not fitting.in_order:
            return identity
    in_order = [identity for identity, fitting in matches if fitting]
    if len(in_order) > 1:
        raise UserError(
            f"checkpoint={path} is ambiguous: its tensors fit {' and '.join(f'a {each}' for each in in_order)} in "
            f"order, and their names fit neither. {HOW_TO_NAME_THE_CLASS}"
        )
    return in_order[0] if in_order else None


def _guesses(found: Shapes) -> Iterator[Identity]:
    for name in architectures():
        guess = getattr(importlib.import_module(f"ptq_exp.networks.{name}"), "guess", None)
        for options in guess(found) if guess else ():
            yield Identity(name, options, _classes(found))


def _classes(found: Shapes) -> int:
    """The number of classes: the rows of the last matrix, or the length of the last vector."""
    for rank in (2, 1):
        if shapes := [shape for shape in found.values() if len(shape) == rank]:
            return shapes[-1][0]
    return 1


def _share(expected: Shapes, found: Shapes) -> float:
    return len(expected.keys() & renamed(found, expected).keys()) / len(expected)
