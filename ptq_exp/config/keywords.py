"""The options of a method from keyword arguments: `ptq_exp.quantize(..., method="best", act_bits=8)`."""

import dataclasses
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from ptq_exp.base.errors import UserError, check_choice
from ptq_exp.base.paths import CONF
from ptq_exp.config import presets
from ptq_exp.config.compose import build
from ptq_exp.quantization.options import QuantConfig

NESTED = "reconstruction"  # the only key of `quant` with keys of its own


def method_options(method: str, changes: Mapping[str, Any]) -> QuantConfig:
    """The options of `conf/quant/<method>.yaml` with `changes`: keys of `quant`, nested ones as a mapping.

    Raises `UserError` for an unknown method or key, and for a value of another type. Bounds are not checked.
    """
    check_choice("method", method, [path.stem for path in (CONF / "quant").glob("*.yaml")])
    nested = _types(_types(QuantConfig)[NESTED])
    for key, value in changes.items():
        if (name := key.removeprefix(f"{NESTED}.")) in nested:
            raise UserError(f"{name} is a key of {NESTED}. Give {NESTED}={{'{name}': {value!r}}}.")
    check_types(QuantConfig, changes)
    options: QuantConfig = build(QuantConfig, presets.merged(presets.option("quant", method), dict(changes)))
    options.name = method
    return options


def _types(kind: Any) -> dict[str, Any]:
    return {field.name: field.type for field in dataclasses.fields(kind)}


def check_types(kind: Any, values: Mapping[str, Any], prefix: str = "") -> None:
    """Raise `UserError` for a value that the field of its name does not hold, as OmegaConf does on the command line."""
    types = _types(kind)
    for key, value in values.items():
        type_ = types.get(key, Any)
        if dataclasses.is_dataclass(type_) and isinstance(value, Mapping):
            check_types(type_, value, f"{prefix}{key}.")
            continue
        allowed = get_args(type_) if isinstance(type_, UnionType) else (type_,)
        if type_ is not Any and not any(_is_a(value, each) for each in allowed):
            words = " or ".join(_in_words(each) for each in allowed)
            raise UserError(f"{prefix}{key}={value!r} is a {type(value).__name__}. Expected: {words}.")


def _is_a(value: Any, type_: Any) -> bool:
    if isinstance(value, bool):
        return type_ is bool
    if dataclasses.is_dataclass(type_):
        return False
    return isinstance(value, int | float if type_ is float else get_origin(type_) or type_)


def _in_words(type_: Any) -> str:
    if dataclasses.is_dataclass(type_):
        return "dict"
    return "None" if type_ is NoneType else str(getattr(type_, "__name__", type_))
