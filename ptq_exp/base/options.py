"""The options of a package: dataclass fields that say what they mean and what they allow, and one check for them all.

OmegaConf knows no `typing.Literal`, so what a field allows lies in its metadata.
"""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack, get_args

from ptq_exp.base.errors import UserError, check_choice


class Allowed(TypedDict, total=False):
    """What a field allows besides its type. Bounds hold for every value of a list, and null is allowed by the type."""

    choices: Sequence[str]
    at_least: float
    above: float
    at_most: float
    below: float
    kind: str  # the type in words, where OmegaConf has no name for it


def option(default: Any, says: str, **allowed: Unpack[Allowed]) -> Any:
    """A dataclass field with its default, its meaning and what it allows."""
    metadata = {"says": says, **allowed}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_options(node: Any, prefix: str = "") -> None:
    """Raise `UserError` for the first value of an options object, or of one inside it, that its field does not allow.

    `prefix` is what stands before the field's name on the command line, `quant.` for example.
    """
    for field in dataclasses.fields(node):
        key, value = f"{prefix}{field.name}", getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            check_options(value, f"{key}.")
        elif value is not None:
            _check(key, value, field)


def bounds_in_words(field: "dataclasses.Field[Any]") -> str:
    """`at least 1`, `positive` or `at least 0 and below 1`; empty for a field without bounds."""
    allowed = field.metadata
    if allowed.get("above") == 0 and not {"at_most", "below"} & allowed.keys():
        return "positive"
    names = {"at_least": "at least", "above": "above", "at_most": "at most", "below": "below"}
    return " and ".join(f"{name} {allowed[bound]}" for bound, name in names.items() if bound in allowed)


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """`{"quant": {"bits": 4}}` or a dataclass as `{"quant.bits": 4}`: keys as typed on the command line."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        node = dataclasses.asdict(node)
    if not isinstance(node, dict) or not node:
        return {prefix.rstrip("."): node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.")
    return flat


def _check(key: str, value: Any, field: "dataclasses.Field[Any]") -> None:
    allowed = field.metadata
    if "choices" in allowed:
        check_choice(key, value, allowed["choices"])
    words = bounds_in_words(field)
    several = isinstance(value, list | tuple)
    if words and not all(_within(number, allowed) for number in (value if several else [value])):
        if several:
            raise UserError(f"{key}={value}: every value must be {words}.")
        raise UserError(f"{key}={value} must be {words}{', or null' if type(None) in get_args(field.type) else ''}.")


def _within(number: float, allowed: Any) -> bool:
    """Whether a number keeps to the bounds. NaN keeps to none."""
    return (
        ("at_least" not in allowed or number >= allowed["at_least"])
        and ("above" not in allowed or number > allowed["above"])
        and ("at_most" not in allowed or number <= allowed["at_most"])
        and ("below" not in allowed or number < allowed["below"])
    )
