"""The YAML files of conf/, read without Hydra, to name methods and to compose configurations on machines without it."""

import copy
import functools
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ptq_exp.base.paths import CONF
from ptq_exp.base.text import read_text

GLOBAL = "# @package _global_"  # in a file's head: its keys are those of the complete configuration


class _Loader(yaml.SafeLoader):
    """Reads numbers like Hydra; YAML 1.1 treats `1e-3` as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+"), list("-+.0123456789")
)


def parse(text: str) -> Any:
    """The value of a YAML text."""
    return yaml.load(text, _Loader)


@functools.cache
def default_options() -> dict[str, str]:
    """The option of each group chosen in conf/config.yaml, in Hydra's merging order."""
    entries = parse(read_text(CONF / "config.yaml"))["defaults"]
    pairs = [next(iter(entry.items())) for entry in entries if isinstance(entry, dict)]
    return {group: name for group, name in pairs if name and not group.startswith("override ")}


def default_option(group: str) -> dict[str, Any]:
    """The values of the group's option that conf/config.yaml chooses."""
    return option(group, default_options()[group])


def option(group: str, name: str, searchpath: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values in the file of an option, with the files of its defaults list merged as in Hydra. Empty if there is no
    such file."""
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
    """The file of an option, or None. conf/ precedes the folders of Hydra's search path."""
    paths = [folder(place) / group / f"{name}.yaml" for place in (str(CONF), *searchpath)]
    return next((path for path in paths if path.is_file()), None)


def search_path(arguments: Iterable[str] = ()) -> tuple[str, ...]:
    """Hydra's search path as given on a command line, else in conf/config.yaml, without conf/ itself."""
    places: list[str] = (parse(read_text(CONF / "config.yaml")).get("hydra") or {}).get("searchpath") or []
    further: list[str] = []
    words = list(arguments)
    for word, following in zip(words, [*words[1:], ""], strict=True):
        key, equals, value = word.partition("=")
        if key.lstrip("+") == "hydra.searchpath":
            places = [place.strip("'\" ") for place in value.strip("'\"[] ").split(",")]
        elif key in {"--config-dir", "-cd"}:
            further.append(value if equals else following)
    return tuple(filter(None, [*further, *places]))


def files(group: str, searchpath: tuple[str, ...] = ()) -> list[Path]:
    """The files of a group's options, by name, one for each name. conf/ precedes the folders of Hydra's search path."""
    folders = [folder(place) / group for place in (*reversed(searchpath), str(CONF))]
    found = {path.stem: path for parent in folders for path in parent.glob("*.yaml")}
    return sorted(found.values(), key=lambda path: (re.sub(r"\d+", "", path.stem), _numbers(path.stem)))


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Merge two mappings recursively. Values of the second take precedence."""
    result = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def folder(place: str) -> Path:
    """The folder of an entry of Hydra's search path: `file://...`, `pkg://...` or a plain path."""
    if place.startswith("pkg://"):
        try:
            package = importlib.util.find_spec(place.removeprefix("pkg://").replace("/", "."))
        except ModuleNotFoundError:  # of the parent package
            package = None
        return Path(next(iter(package.submodule_search_locations or [place])) if package else place)
    return Path(place.removeprefix("file://"))
