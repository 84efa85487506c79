"""Fitting the tensors of a file to a network: by name, after regular renamings, or in order."""

import contextlib
import copy
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ptq_exp.base.console import log
from ptq_exp.base.errors import UserError
from ptq_exp.networks.graph import batch_norm_pairs
from ptq_exp.networks.reading.renaming import (
    COUNTERS,
    Shapes,
    describe,
    differences,
    regular_names,
    renamed,
    shapes_of,
    shortened,
)  # fmt: skip
from ptq_exp.networks.reading.unwrapping import normalizer, parts, together, without_prefixes
from ptq_exp.networks.reading.weights_file import WeightsFile

HOW_TO_NAME_THE_CLASS = "Name the class that the weights belong to: model=custom model.target=path/to/nets.py:ClassName"
KINDS = {"gamma": "weight", "beta": "bias", "kernel": "weight", "moving_mean": "running_mean",
         "moving_var": "running_var", "moving_variance": "running_var"}  # fmt: skip


@dataclass
class Fit:
    """The weights of a network under its own names, and how they were found."""

    weights: dict[str, Tensor]
    how: str  # a sentence for the log
    normalizes: bool = False  # the network holds the layer that normalizes its images, so it takes values from 0 to 1


@dataclass
class Match:
    """The names in the file by the names in the network."""

    names: dict[str, str]
    how: str
    in_order: bool = False
    biases: dict[str, str] = field(default_factory=dict)  # of convolutions without one in the network


def fit(model: nn.Module, file: WeightsFile) -> Fit:
    """The weights of `file` for `model`. Only `num_batches_tracked` may be missing.

    A bias of a convolution that the network lacks is subtracted from the running mean of the batch norm behind it,
    which gives the same function. Raises `UserError` if the weights do not fit or fit in two ways.
    """
    state = model.state_dict()
    expected, shapes, path = shapes_of(state), shapes_of(file.weights), file.path
    weights, found = next(
        ((named, found) for named in without_prefixes(file.original) if (found := by_name(expected, shapes_of(named)))),
        (file.weights, None),
    )
    normalizes = found is not None and normalizer(weights) is not None
    found = found or match(expected, shapes, path)
    if not found and (other := _part(expected, file)):
        weights, found = other
    if not found and (other := _merged(expected, file)):
        weights, found = other
    elif file.beside.choice:
        log.info("checkpoint=%s: %s.", path, file.beside.choice)
    if not found:
        raise UserError(
            f"checkpoint={path} does not fit the network. {differences(expected, renamed(shapes, expected))}. "
            f"The file holds {describe(shapes_of(file.original))}. {HOW_TO_NAME_THE_CLASS}"
        )
    fitted = {name: _checked(key, weights[key], state[name], path) for name, key in found.names.items()}
    if found.biases:
        _absorb(model, fitted, {name: weights[key] for name, key in found.biases.items()}, path)
    return Fit(fitted, found.how, normalizes)


def match(expected: Shapes, found: Shapes, path: Path) -> Match | None:
    """The assignment of the `found` tensors to the `expected` ones, or None. Raises `UserError` if two are possible."""
    return by_name(expected, found) or _by_renaming(expected, found, path) or _in_order(expected, found)


def _part(expected: Shapes, file: WeightsFile) -> tuple[dict[str, Tensor], Match] | None:
    """The part of the file with the names of the network, beside a teacher, a criterion or the like."""
    fitting = {}
    for name, weights in parts(file.weights).items():
        shapes = shapes_of(weights)
        if found := by_name(expected, shapes) or _by_renaming(expected, shapes, file.path):
            fitting[name] = weights, replace(found, how=found.how.replace("weights", f"weights under `{name}`", 1))
    if len(fitting) > 1:
        raise UserError(
            f"checkpoint={file.path} is ambiguous: the weights under {shortened(list(fitting))} fit the network. Save "
            f"the ones to use in a separate file."
        )
    return next(iter(fitting.values()), None)


def _merged(expected: Shapes, file: WeightsFile) -> tuple[dict[str, Tensor], Match] | None:
    """The state dicts that lie next to each other in the file as one, if they fit together. Names come before order."""
    fitting = []
    beside = file.beside.read()
    for weights in together(beside):
        with contextlib.suppress(UserError):  # ambiguous in this way, but perhaps not in another
            if found := match(expected, shapes_of(weights), file.path):
                names = " and ".join(f"`{name}`" for name in beside)
                how = found.how.replace("weights", f"weights under {names} together", 1)
                fitting.append((weights, replace(found, how=how)))
    return min(fitting, key=lambda fit: fit[1].in_order, default=None)


def by_name(expected: Shapes, found: Shapes) -> Match | None:
    """The assignment of tensors with the same names, or None if they do not fit."""
    names = {key: key for key in expected if key in found}
    return _complete(expected, found, names, "The weights fit by name.")


def _by_renaming(expected: Shapes, found: Shapes, path: Path) -> Match | None:
    wanted, there = regular_names(expected), regular_names(found)
    if any(len(names) > 1 for names in wanted.values()):
        return None
    for form, names in there.items():
        if len(names) > 1 and form in wanted:
            raise UserError(
                f"checkpoint={path} is ambiguous: {shortened(names)} could each be the network's {wanted[form][0]}. "
                f"{HOW_TO_NAME_THE_CLASS}"
            )
    pairs = {wanted[form][0]: keys[0] for form, keys in there.items() if form in wanted}
    ordered = {name: pairs[name] for name in expected if name in pairs}
    return _complete(expected, found, ordered, f"The weights fit after {_changes(ordered)}.")


def _changes(names: dict[str, str]) -> str:
    """For example: renaming `fc` to `linear`, renaming `downsample` to `shortcut`."""
    changes: dict[tuple[str, str], None] = {}
    for new, old in names.items():
        before, after = old.split("."), new.split(".")
        while before and after and before[0] == after[0]:
            before, after = before[1:], after[1:]
        while before and after and before[-1] == after[-1]:
            before, after = before[:-1], after[:-1]
        changes[".".join(before), ".".join(after)] = None
    listed = [
        f"renaming `{old}` to `{new}`" if old and new else f"removing `{old}`" if old else f"adding `{new}`"
        for old, new in changes
        if old or new
    ]
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def _in_order(expected: Shapes, found: Shapes) -> Match | None:
    """The assignment where the layers have the same tensors of the same shapes in the same order."""
    wanted, there = _layers(expected), _layers(found)
    if len(wanted) != len(there):
        return None
    names = {}
    for ours, theirs in zip(wanted, there, strict=True):
        names.update({ours[kind]: theirs[kind] for kind in ours if kind in theirs})
    count = sum(not name.endswith(COUNTERS) for name in names)
    how = f"The weights fit in order: the names differ, but the {count} tensors have the same shapes in the same order."
    return _complete(expected, found, names, how, in_order=True)


def _layers(shapes: Shapes) -> list[dict[str, str]]:
    """The names of every layer's tensors by their kind (weight, bias, running_mean, ...)."""
    layers: dict[str, dict[str, str]] = {}
    for key in shapes:
        layer, _, kind = key.rpartition(".")
        layers.setdefault(layer, {})[KINDS.get(kind, kind)] = key
    return list(layers.values())


def _complete(expected: Shapes, found: Shapes, names: dict[str, str], how: str, in_order: bool = False) -> Match | None:
    """The match if every tensor has its place, with its shape. Only biases of convolutions may be left over."""
    missing = [name for name in expected if name not in names and not name.endswith(COUNTERS)]
    if missing or any(found[key] != expected[name] for name, key in names.items()):
        return None
    ours = {key: name for name, key in names.items()}
    biases = {}
    for key in (key for key in found if key not in ours):
        layer, _, kind = key.rpartition(".")
        convolution = ours.get(f"{layer}.weight", "")
        if kind != "bias" or len(expected.get(convolution, ())) != 4 or found[key] != expected[convolution][:1]:
            return None
        biases[convolution.removesuffix("weight") + "bias"] = key
    return Match(names, how, in_order, biases)


def _absorb(model: nn.Module, weights: dict[str, Tensor], biases: dict[str, Tensor], path: Path) -> None:
    """Subtract the biases from the running means behind them: bn(y + b) with mean m is bn(y) with mean m - b."""
    try:
        # The graph tells parameters apart by their memory, which a network on the meta device does not have.
        norms = dict(batch_norm_pairs(copy.deepcopy(model).to_empty(device="cpu")))
    except UserError:  # a network that cannot be traced
        norms = {}
    for name, bias in biases.items():
        norm = norms.get(name.removesuffix(".bias"))
        if norm is None:
            raise UserError(
                f"checkpoint={path} does not fit the network. Unexpected: {name}. No batch norm is known to follow "
                f"this convolution and could take the bias. {HOW_TO_NAME_THE_CLASS}"
            )
        mean = f"{norm}.running_mean"
        weights[mean] = weights[mean] - _checked(name, bias, bias, path)


def _checked(key: str, value: Tensor, place: Tensor, path: Path) -> Tensor:
    """The tensor itself. Raises `UserError` if its values are not finite floats where the network has floats, or
    negative variances."""
    problem = ""
    if value.is_meta:
        problem = "has a shape but no values (it was saved from the meta device)"
    elif place.is_floating_point() and not value.is_floating_point():
        problem = f"has {str(value.dtype).removeprefix('torch.')} values, but float weights are needed"
    elif value.is_floating_point() and not torch.isfinite(value).all():
        problem = "has values that are not finite. The file is damaged"
    elif key.endswith("running_var") and (value < 0).any():
        problem = "has negative variances. The file is damaged"
    if problem:
        raise UserError(f"checkpoint={path}: {shortened([key])} {problem}.")
    return value
