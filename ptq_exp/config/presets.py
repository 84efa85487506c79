"""The YAML files of conf/, read without Hydra: what a method's file sets names the method, and a machine without Hydra
composes its configurations from them."""

import copy
import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

import yaml

from ptq_exp.base.paths import CONF
from ptq_exp.base.text import read_text

GLOBAL = "# @package _global_"  # in a file's head: its keys are those of the whole configuration


class _Loader(yaml.SafeLoader):
    """Numbers as Hydra reads them: YAML 1.1 takes `1e-3` for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+"), list("-+.0123456789")
)


def parse(text: str) -> Any:
    """The value that a text in YAML stands for."""
    return yaml.load(text, _Loader)


@functools.cache
def default_options() -> dict[str, str]:
    """The option of each group that conf/config.yaml chooses, in the order in which Hydra merges them."""
    entries = parse(read_text(CONF / "config.yaml"))["defaults"]
    pairs = [next(iter(entry.items())) for entry in entries if isinstance(entry, dict)]
    return {group: name for group, name in pairs if name and not group.startswith("override ")}


def default_option(group: str) -> dict[str, Any]:
    """What the option of a group sets that conf/config.yaml chooses."""
    return option(group, default_options()[group])


def option(group: str, name: str, searchpath: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the file of an option sets, with the files of its defaults list merged as Hydra does; nothing where there is
    no such file."""
    return copy.deepcopy(_option(group, name, searchpath))


@functools.cache
def _option(group: str, name: str, searchpath: tuple[str, ...]) -> dict[str, Any]:
    found = find(group, name, searchpath)
    content: dict[str, Any] = (parse(read_text(found)) or {}) if found else {}
    others = [entry for entry in content.pop("defaults", []) if isinstance(entry, str)]
    result: dict[str, Any] = {}
    for entry in others if "_self_" in others else [*others, "_self_"]:
        there = content if entry == "_self_" else _option(group, entry.rpartition("/")[2], searchpath)
        result = merged(result, there)
    return result


def find(group: str, name: str, searchpath: tuple[str, ...] = ()) -> Path | None:
    """The file of an option; conf/ goes before the folders of Hydra's search path."""
    paths = [_folder(place) / group / f"{name}.yaml" for place in (str(CONF), *searchpath)]
    return next((path for path in paths if path.is_file()), None)


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Both mappings, level by level; the second one's values win."""
    result = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def _folder(place: str) -> Path:
    """The folder behind an entry of Hydra's search path: `file://...`, `pkg://...` or a plain path."""
    if place.startswith("pkg://"):
        package = importlib.util.find_spec(place.removeprefix("pkg://").replace("/", "."))
        return Path(next(iter(package.submodule_search_locations or ["."])) if package else ".")
    return Path(place.removeprefix("file://"))
