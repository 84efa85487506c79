"""Messages for values of the wrong type, from the schema of the configuration."""

import dataclasses
import re
from typing import Any, get_args, get_origin

from ptq_exp.base.options import type_in_words
from ptq_exp.config.schema import Config

IN_WORDS = {
    "int": "an integer", "float": "a number", "bool": "true or false", "str": "a word",
    "list[int]": "a list of integers", "list[float]": "a list of numbers", "list[str]": "a list of words",
}  # fmt: skip


def wrong_value(override: str) -> str | None:
    """The message for an override whose value has the wrong type, or None for a key without a documented type."""
    key, _, value = override.lstrip("+").partition("=")
    field = _field(key)
    if field is None:
        return None
    words = type_in_words(field).replace(" | ", " or ")
    if takes_entries(key):
        return f"{override} is not allowed. {entries(key)}"
    kind, *bounds = re.split(r"[:,] ", words, maxsplit=1)
    names = [IN_WORDS.get(name, name) for name in kind.split(" or ") if name != "None"]
    null = ", or null" if "None" in kind.split(" or ") else ""
    example = f", for example {key}='[{value}]'" if takes_lists(key) and not value.startswith("[") else ""
    return (
        f"{override} is not allowed. Allowed: {' or '.join(names)}{f' ({bounds[0]})' if bounds else ''}{null}{example}."
    )


def takes_entries(key: str) -> bool:
    """Whether a dotted key takes entries with names of the user."""
    field = _field(key)
    return field is not None and type_in_words(field).startswith("dict")


def entries(key: str) -> str:
    """How to write a key that takes entries."""
    example = "{layer3.*:3,linear:8}" if key == "quant.layer_bits" else "{name:value}"
    return f"{key} takes entries in braces, with a plus sign and in quotes: '+{key}={example}'."


def takes_lists(key: str) -> bool:
    """Whether a dotted key takes a list."""
    field = _field(key.lstrip("+"))
    if field is None:
        return False
    kinds = [field.type, *get_args(field.type)]
    return any(get_origin(kind) is list for kind in kinds) or "list" in field.metadata.get("kind", "")


def _field(key: str) -> "dataclasses.Field[Any] | None":
    kind: Any = Config
    for name in key.split("."):
        fields = {field.name: field for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
        if name not in fields:
            return None
        found, kind = fields[name], fields[name].type
    return found if "says" in found.metadata else None
