"""The options of a package: dataclass fields with a description and the allowed values, and one check for all of them.

OmegaConf does not support `typing.Literal`, so the allowed values of a field are in its metadata.
"""

import copy
import dataclasses
import json
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack, get_args

from ptq_exp.base.errors import UserError, check_choice


class Allowed(TypedDict, total=False):
    """The allowed values of a field, besides its type. Bounds apply to every value of a list; the type allows null."""

    choices: Sequence[str]
    at_least: float
    above: float
    at_most: float
    below: float
    kind: str  # the type in words, if OmegaConf has no name for it


def option(default: Any, says: str, **allowed: Unpack[Allowed]) -> Any:
    """A dataclass field with its default, its description and its allowed values."""
    metadata = {"says": says, **allowed}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_options(node: Any, prefix: str = "") -> None:
    """Raise `UserError` for the first value in an options object, including nested ones, that its field does not allow.

    `prefix` precedes the field's name on the command line, for example `quant.`.
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


def type_in_words(field: "dataclasses.Field[Any]") -> str:
    """The type of a field and its constraints: `float or None, positive`."""
    kind = field.type
    plain = isinstance(kind, type) and not hasattr(kind, "__args__")
    words = field.metadata.get("kind") or str(getattr(kind, "__name__", kind) if plain else kind)
    if choices := field.metadata.get("choices"):
        return f"{words}: {', '.join(choices)}"
    return ", ".join(filter(None, [words, bounds_in_words(field)]))


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


def as_typed(value: Any) -> str:
    """A value as typed on the command line, without blanks in lists and without `.0`: `null`, `[3,4]`, `2`."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return text.removesuffix(".0") if isinstance(value, float) else text


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
    """Whether a number is within the bounds. NaN never is."""
    return (
        ("at_least" not in allowed or number >= allowed["at_least"])
        and ("above" not in allowed or number > allowed["above"])
        and ("at_most" not in allowed or number <= allowed["at_most"])
        and ("below" not in allowed or number < allowed["below"])
    )
