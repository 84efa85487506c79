"""Identification of the known network of a state dict, by the names and shapes of its tensors."""

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ptq_exp.base.errors import UserError
from ptq_exp.networks import allowed_options, architectures, build_model

Shapes = dict[str, tuple[int, ...]]
SHORTCUT = re.compile(r"\.(shortcut|downsample|identity_conv)\.")
COUNTERS = "num_batches_tracked"  # of batch norm; older versions of torch did not store them
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
        if metadata.get("architecture") not in architectures() or "classes" not in metadata:
            return None
        options = {name: metadata[name] for name in allowed_options(metadata["architecture"]) if name in metadata}
        classes = metadata["classes"]  # their names, or how many in the shipped files
        return cls(metadata["architecture"], options, classes if isinstance(classes, int) else len(classes))

    def __str__(self) -> str:
        """`ResNet-20 with pad shortcuts`."""
        name = {"resnet": "ResNet", "vgg": "VGG"}.get(self.architecture)
        if name is None:
            return self.architecture
        shortcut = f" with {self.options['shortcut']} shortcuts" if "shortcut" in self.options else ""
        return f"{name}-{self.options.get('depth', '')}{shortcut}"

    def shapes(self) -> Shapes:
        """The names and shapes of its state dict."""
        with torch.device("meta"):
            network = build_model(self.architecture, self.classes, **self.options)
        return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def identify(found: Shapes, path: Path, original: Shapes | None = None) -> Identity:
    """The network that fits a state dict of these shapes with our names.

    The function `guess` of each family returns its closest network, which is accepted only if every tensor fits.
    Raises `UserError`, with a description of the file by its `original` names, if none fits.
    """
    guesses = []
    for name in architectures():
        guess = getattr(importlib.import_module(f"ptq_exp.networks.{name}"), "guess", None)
        options = guess(found) if guess else None
        if options is not None:
            classes = (found["linear.weight"] or found.get("linear.bias") or (1,))[0]
            guesses.append(Identity(name, options, classes))
    for identity in guesses:
        if not differences(identity.shapes(), found):
            return identity
    described = f"checkpoint={path} contains no known network: {describe(original or found)}."
    related = [identity for identity in guesses if _share(identity.shapes(), found) >= RELATED]
    if related:
        identity = max(related, key=lambda candidate: _share(candidate.shapes(), found))
        described += f" The closest is a {identity}, but it does not fit. {differences(identity.shapes(), found)}."
    raise UserError(
        f"{described} The known networks are the CIFAR ResNets (20, 32, 44, 56, 110 layers and the like) and VGGs of "
        f"conf/model, with the names of common projects. To add another network, see CONTRIBUTING.md."
    )


def differences(expected: Shapes, found: Shapes) -> str:
    """The differences between the `expected` shapes of a network and those `found`. Empty if they fit."""
    problems = {
        "missing": [key for key in expected if key not in found and not key.endswith(COUNTERS)],
        "unexpected": [key for key in found if key not in expected],
        "different shape": [
            f"{key} {found[key]} instead of {shape}" for key, shape in expected.items()
            if key in found and found[key] != shape
        ],
    }  # fmt: skip
    return "; ".join(f"{name}: {shortened(keys)}" for name, keys in problems.items() if keys)


def describe(found: Shapes) -> str:
    """A description of a state dict: the number of layers of each kind, the first, the last, and the classes."""
    weights = {key: shape for key, shape in found.items() if len(shape) >= 2}
    if not weights:
        return f"none of its tensors has the shape of a layer's weights. Its keys: {shortened(list(found))}"
    main = [shape for key, shape in weights.items() if not SHORTCUT.search(key)]
    convolutions, matrices = (sum(len(shape) == rank for shape in main) for rank in (4, 2))
    (first, first_shape), (last, last_shape) = next(iter(weights.items())), list(weights.items())[-1]
    return (
        f"{len(main)} layers ({convolutions} convolutions, {matrices} linear) and {len(weights) - len(main)} in "
        f"shortcuts; the first is {first} {first_shape}, the last {last} {last_shape}, for {last_shape[0]} classes. "
        f"Its keys: {shortened(list(found))}"
    )


def shortened(keys: list[str], most: int = 8) -> str:
    """The first keys of a possibly long list, as text."""
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _share(expected: Shapes, found: Shapes) -> float:
    return sum(key in found for key in expected) / len(expected)
