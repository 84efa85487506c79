"""The name of a method: its file in conf/quant and the changes to it.

Examples: `notebook`, `notebook granularity=channel alpha_rule=mse`, `best reconstruction.steps=100`. A `name:` inside
the file is ignored, because a copy of a preset would keep the original's name.
"""

from ptq_exp.base.options import as_typed, flatten
from ptq_exp.config.presets import option
from ptq_exp.config.schema import Config
from ptq_exp.quantization.options import QuantConfig

NAME_LETTERS = 150  # for the method in the name of a run; databases allow 250 for the complete name
# Keys that are always shown beside the name, and keys that do not change the network.
NOT_THE_METHOD = ("name", "bits", "act_bits", "sensitivity")


def words_of(config: Config) -> list[str]:
    """The method of a job: its file's name, then `key=value` for each key whose value differs from the file."""
    given = flatten(config.quant)
    file = flatten(QuantConfig()) | flatten(option("quant", config.method, tuple(config.searchpath)))
    changed = [key for key, value in given.items() if key not in NOT_THE_METHOD and value != file.get(key)]
    return [config.method, *(f"{key}={as_typed(given[key])}" for key in changed)]


def typed_or_changed(config: Config) -> list[str]:
    """The same, plus typed overrides equal to the file's values, so that run names distinguish all jobs of a sweep."""
    words = words_of(config)
    overrides = [word.lstrip("+") for word in config.overrides.split()]
    typed = [word.removeprefix("quant.") for word in overrides if word.startswith("quant.")]
    keys = {word.partition("=")[0] for word in words[1:]}
    return words + [word for word in typed if not _covered(word.partition("=")[0], keys)]


def _covered(key: str, keys: set[str]) -> bool:
    return key in NOT_THE_METHOD or any(known == key or known.startswith(f"{key}.") for known in keys)


def shortened(words: list[str], letters: int) -> str:
    """The words in one line of about `letters` characters, with the number of omitted words."""
    kept = len(words)
    while kept > 1 and len(" ".join(words[:kept])) > letters:
        kept -= 1
    more = f" and {len(words) - kept} more changes" if kept < len(words) else ""
    return " ".join(words[:kept]) + more
