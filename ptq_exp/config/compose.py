"""A `Config` from command-line words without Hydra, for machines that only run benchmarks."""

import dataclasses
import re
from pathlib import Path
from typing import Any, get_args

from ptq_exp.base.errors import check_choice, unknown_key
from ptq_exp.base.options import flatten
from ptq_exp.base.paths import CONF
from ptq_exp.base.text import read_text
from ptq_exp.config import presets
from ptq_exp.config.schema import Config


def compose(*words: str) -> Config:
    """The `Config` that run.py composes from `group=option`, `key=value` and `+key=value`, without values of a job.

    Raises `UserError` for an unknown option or key. `validate` checks the values.
    """
    given = dict(word.lstrip("+").split("=", 1) for word in words)
    groups = {key: given.pop(key) for key in list(given) if (CONF / key).is_dir()}
    chosen = presets.default_options() | groups
    for group, name in groups.items():
        check_choice(group, name, [path.stem for path in (CONF / group).glob("*.yaml")])
        for other, option in _overridden(group, name).items():
            chosen[other] = groups.get(other, option)
    tree: dict[str, Any] = {"method": chosen["quant"]}
    for group, name in chosen.items():
        content = presets.option(group, name)
        tree = presets.merged(tree, content if _is_global(group, name) else {group: content})
    for key, value in given.items():
        *parents, last = key.split(".")
        entry = {last: presets.parse(value)}
        for parent in reversed(parents):
            entry = {parent: entry}
        tree = presets.merged(tree, entry)
    return build(Config, _resolved(tree, flatten(tree)))


def from_file(path: Path) -> Config:
    """The resolved configuration that a job keeps among its artifacts."""
    return build(Config, presets.parse(read_text(path)))  # type: ignore[no-any-return]


def _overridden(group: str, name: str) -> dict[str, str]:
    """The options of other groups chosen in an option's file: `- override /optimizer: nesterov`."""
    text = read_text(CONF / group / f"{name}.yaml")
    entries = (presets.parse(text) or {}).get("defaults", [])
    pairs = [next(iter(entry.items())) for entry in entries if isinstance(entry, dict)]
    return {key.removeprefix("override /"): option for key, option in pairs}


def _is_global(group: str, name: str) -> bool:
    path = presets.find(group, name)
    return path is not None and presets.GLOBAL in read_text(path)


def _resolved(node: Any, values: dict[str, Any]) -> Any:
    """Replace `${trainer.epochs}` by the value of that key, or None if it is not set."""
    if isinstance(node, dict):
        return {key: _resolved(value, values) for key, value in node.items()}
    found = re.fullmatch(r"\$\{([\w.]+)\}", node) if isinstance(node, str) else None
    return values.get(found[1]) if found else node


def build(kind: Any, node: dict[str, Any], prefix: str = "") -> Any:
    """The dataclass `kind` with the values of a mapping. Raises `UserError` for an unknown key, shown with `prefix`."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in node.items():
        if key not in fields:
            raise unknown_key(f"{prefix}{key}", [f"{prefix}{name}" for name in sorted(fields)])
        type_ = fields[key].type
        if dataclasses.is_dataclass(type_) and isinstance(value, dict):
            value = build(type_, value, f"{prefix}{key}.")
        elif isinstance(value, int) and not isinstance(value, bool) and float in (type_, *get_args(type_)):
            value = float(value)
        values[key] = value
    return kind(**values)
