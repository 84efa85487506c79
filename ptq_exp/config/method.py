"""What a method is called: the file of conf/quant that it came from, and what was changed in it.

`notebook`, `notebook granularity=channel alpha_rule=mse`, `best reconstruction.steps=100`. A `name:` inside of the file
plays no part: a copy of a preset would keep the name of what it was copied from.
"""

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ptq_exp.base.paths import CONF
from ptq_exp.base.text import read_text
from ptq_exp.quantization.options import QuantConfig

if TYPE_CHECKING:
    from ptq_exp.config import Config

NAME_LETTERS = 150  # of a method in the name of a run: databases hold 250 in all
# What is shown beside the name wherever it is shown, and what changes no network.
NOT_THE_METHOD = ("name", "bits", "act_bits", "sensitivity")


def words_of(config: "Config") -> list[str]:
    """The method of a job: its file's name, then `key=value` for each key that has another value than in the file."""
    given = _flat(dataclasses.asdict(config.quant))
    file = _flat(dataclasses.asdict(QuantConfig())) | preset(config.method, tuple(config.searchpath))
    changed = [key for key, value in given.items() if key not in NOT_THE_METHOD and not _same(value, file.get(key))]
    return [config.method, *(f"{key}={_text(given[key])}" for key in changed)]


def typed_or_changed(config: "Config") -> list[str]:
    """The same, and what was typed to be as the file says anyway: a run's name tells all jobs of a sweep apart."""
    words = words_of(config)
    overrides = [word.lstrip("+") for word in config.overrides.split()]
    typed = [word.removeprefix("quant.") for word in overrides if word.startswith("quant.")]
    keys = {word.partition("=")[0] for word in words[1:]}
    return words + [word for word in typed if not _covered(word.partition("=")[0], keys)]


def _covered(key: str, keys: set[str]) -> bool:
    return key in NOT_THE_METHOD or any(known == key or known.startswith(f"{key}.") for known in keys)


@functools.cache
def preset(name: str, searchpath: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the file of a method sets, by dotted keys, with the files of its defaults list merged as Hydra does."""
    paths = [_folder(place) / "quant" / f"{name}.yaml" for place in (str(CONF), *searchpath)]
    found = next((path for path in paths if path.is_file()), None)
    content: dict[str, Any] = (yaml.safe_load(read_text(found)) or {}) if found else {}
    others = [entry for entry in content.pop("defaults", []) if isinstance(entry, str)]
    merged: dict[str, Any] = {}
    for entry in others if "_self_" in others else [*others, "_self_"]:
        merged |= _flat(content) if entry == "_self_" else preset(entry.rpartition("/")[2], searchpath)
    return merged


def _folder(place: str) -> Path:
    """The folder behind an entry of Hydra's search path: `file://...`, `pkg://...` or a plain path."""
    if place.startswith("pkg://"):
        package = importlib.util.find_spec(place.removeprefix("pkg://").replace("/", "."))
        return Path(next(iter(package.submodule_search_locations or ["."])) if package else ".")
    return Path(place.removeprefix("file://"))


def shortened(words: list[str], letters: int) -> str:
    """The words in one line of about so many letters; how many words are left out is said."""
    kept = len(words)
    while kept > 1 and len(" ".join(words[:kept])) > letters:
        kept -= 1
    more = f" and {len(words) - kept} more changes" if kept < len(words) else ""
    return " ".join(words[:kept]) + more


def _flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _same(value: Any, other: Any) -> bool:
    """Whether Hydra reads both as the same: YAML 1.1 takes `1e-3` for a text, Hydra for a number."""
    if isinstance(other, str) and isinstance(value, float):
        return str(value) == str(float(other))
    return bool(value == other)


def _text(value: Any) -> str:
    """As typed on the command line."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return text.removesuffix(".0") if isinstance(value, float) else text
