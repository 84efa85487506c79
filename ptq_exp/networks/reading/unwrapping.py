"""A state dict without what wrappers and tools have added to the network."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ptq_exp.networks.reading.state_dicts import AVERAGED

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "student.")
MOST_PARTS = 8
PROFILER = re.compile(r"(^|\.)total_(ops|params)$")  # the counters of thop
NORMALIZER = re.compile(r"^(?P<layer>(?:.*\.)?)(?P<kind>_?(?:image_|pixel_|input_|data_)?)(?P<name>mean|mu)$")
SPREAD = {"mean": "std", "mu": "sigma"}
# The tensors from which torch.nn.utils computes a weight, by the ends of their names: the first stands for all.
PRUNED = ("_orig", "_mask")
WEIGHT_NORM = [("_g", "_v"), ("parametrizations.{}.original0", "parametrizations.{}.original1")]
SPECTRAL_NORM = [
    ("_orig", "_u", "_v"),
    ("parametrizations.{}.original", "parametrizations.{}.0._u", "parametrizations.{}.0._v"),
]


def unwrap(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights without prefixes, profiler counters and a layer that normalizes the images, and with every weight
    that is computed from several tensors; and the constants of that layer (`mean` and `std`, for values from 0 to 1).
    """
    weights = {key: value for key, value in weights.items() if not PROFILER.search(key)}
    constants: dict[str, Any] | None = None
    while True:
        if prefix := _prefix(weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
        elif constants is None and (found := normalizer(weights)):
            constants = _constants(weights, *found)
            weights = {key: value for key, value in weights.items() if key not in found}
            first = {key.partition(".")[0] for key in weights}
            if len(first) == 1:  # such as the 1 in Sequential(normalize, network)
                weights = {key.partition(".")[2]: value for key, value in weights.items()}
        else:
            return _computed(weights), constants or {}


def without_prefixes(weights: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The weights as they are, and without one prefix after the other."""
    yield weights
    while weights and (prefix := _prefix(weights)):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
        yield weights


def _prefix(weights: dict[str, Tensor]) -> str:
    """A usual prefix of all names, or an empty string."""
    return next((p for p in PREFIXES if all(key.startswith(p) for key in weights)), "")


def parts(weights: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The weights below every first component of the names, in files of a network beside others (teacher, criterion).

    Averages are left out.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        first, _, rest = key.partition(".")
        found.setdefault(first, {})[rest] = value
    if len(found) < 2:
        return {}
    largest = sorted(found, key=lambda name: -len(found[name]))[:MOST_PARTS]
    return {name: found[name] for name in largest if not AVERAGED.search(name) and "" not in found[name]}


def together(beside: dict[str, dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """One state dict of several (a backbone and a head), with the ways that networks may call their tensors.

    They keep their names as prefixes, or the largest or all of them lose it. They come in the order of the file, or the
    largest comes first.
    """
    if len(beside) < 2:
        return
    largest = max(beside, key=lambda name: len(beside[name]))
    for first in ((), (largest,)):
        every = [(part, key) for part in dict.fromkeys([*first, *beside]) for key in beside[part]]
        for bare in ([], [largest], list(beside)):
            merged = {key if part in bare else f"{part}.{key}": beside[part][key] for part, key in every}
            if len(merged) == len(every):
                yield merged


def normalizer(weights: dict[str, Tensor]) -> tuple[str, str] | None:
    """The names of the mean and the standard deviation of the images, or None if no layer holds them alone."""
    inside = Counter(key[: key.rfind(".") + 1] for key in weights if "." in key)
    for key in weights:
        if not (match := NORMALIZER.match(key)):
            continue
        spread = f"{match['layer']}{match['kind']}{SPREAD[match['name']]}"
        sizes = {weights[name].numel() for name in (key, spread) if name in weights}
        if spread in weights and inside[match["layer"]] in (0, 2) and len(weights) > 2 and sizes <= {1, 3}:
            return key, spread
    return None


def _constants(weights: dict[str, Tensor], mean: str, std: str) -> dict[str, Any]:
    values = [weights[name].flatten().double().tolist() for name in (mean, std)]
    if any(len(value) != 3 for value in values) or min(values[1]) <= 0:
        return {}
    scale = 255 if max(values[0]) > 1 else 1  # no mean of values from 0 to 1 is above 1
    return {"mean": [value / scale for value in values[0]], "std": [value / scale for value in values[1]]}


def _computed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compute the weights that are stored in parts (pruning, weight norm, spectral norm)."""
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for key, value in weights.items():
        if key in used:
            continue
        for ends, compute in _COMPUTED:
            name = _stem(key, ends[0])
            parts = [_part(name, end) for end in ends] if name else []
            if name and all(part in weights for part in parts):
                used.update(parts)
                found[name] = compute(*(weights[part] for part in parts))
                break
        else:
            found[key] = value
    return {key: value for key, value in found.items() if key not in used}


def _stem(key: str, end: str) -> str:
    """`conv.weight` from `conv.weight_orig` or `conv.parametrizations.weight.original0`; empty for another end."""
    before, brace, after = end.partition("{}")
    if not brace:
        return key.removesuffix(end) if key.endswith(end) else ""
    match = re.fullmatch(rf"((?:.*\.)?){re.escape(before)}(\w+){re.escape(after)}", key)
    return f"{match[1]}{match[2]}" if match else ""


def _part(name: str, end: str) -> str:
    if "{}" not in end:
        return name + end
    module, _, attribute = name.rpartition(".")
    return ".".join(filter(None, [module, end.format(attribute)]))


def _weight_norm(length: Tensor, direction: Tensor) -> Tensor:
    """Salimans & Kingma 2016: the norm is over the dimensions that `length` does not have."""
    if not length.dim():
        return direction * (length / direction.norm())
    axes = [axis for axis, size in enumerate(length.shape) if size == 1]
    return direction * (length / torch.linalg.vector_norm(direction, dim=axes, keepdim=True))


def _spectral_norm(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Miyato et al. 2018, as in evaluation: divided by the stored estimate of the largest singular value."""
    return weight / (left @ weight.flatten(1) @ right)


_COMPUTED: list[tuple[tuple[str, ...], Any]] = [
    (PRUNED, lambda weight, mask: weight * mask.to(weight.dtype)),
    *((ends, _weight_norm) for ends in WEIGHT_NORM),
    *((ends, _spectral_norm) for ends in SPECTRAL_NORM),
]
