"""Messages for mistyped options: Hydra's and OmegaConf's errors in terms of this project's keys.

This module needs neither Hydra nor OmegaConf.
"""

import errno
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import yaml

from ptq_exp.base.errors import UserError, did_you_mean
from ptq_exp.base.options import flatten
from ptq_exp.base.text import complain, read_text, write_what_fits
from ptq_exp.config import presets
from ptq_exp.config.schema import Config
from ptq_exp.config.values import entries, takes_entries, takes_lists, wrong_value

ARGUMENTS = "model.args."  # of the network's class, which the user adds
OPEN_GROUPS = ("model", "optimizer", "scheduler")  # they accept any key; the known keys are those of their files


def known_keys(conf: Path) -> set[str]:
    """Every dotted key of the schema, for example `quant.bits`, and those in the files of the open groups."""
    found = set(flatten(Config(model={}, optimizer={}, scheduler={})))
    for path in [path for group in OPEN_GROUPS for path in (conf / group).glob("*.yaml")]:
        try:
            content = yaml.safe_load(read_text(path))
        except (OSError, ValueError, yaml.YAMLError):  # an invalid file elsewhere is a separate mistake
            continue
        found |= set(flatten(content, f"{path.parent.name}."))
    parents = {key.rpartition(".")[0] for key in found} - {""}
    return found | parents | {key.partition(".")[0] for key in found}


def explain(error: BaseException, conf: Path) -> str | None:
    """The message for a user's mistake, or None if `error` is a bug in the program.

    Hydra's and OmegaConf's errors are recognized by name, so that this module needs neither of them.
    """
    if isinstance(error, UserError):
        return str(error)
    kinds = {cls.__name__ for cls in type(error).__mro__}
    text = "\n".join(filter(None, [str(error), str(error.__cause__ or "")]))
    if 'Could not detect "srun"' in text:
        return "hydra/launcher=submitit_slurm needs Slurm's srun on this machine. submitit_local works without it."
    if plugin := re.search(r"hydra_plugins\.hydra_(\w+)_launcher", text):
        extra = {"submitit": "slurm"}.get(plugin[1], plugin[1])
        return f"This hydra/launcher needs a package that is not installed: pip install -e '.[{extra}]'."
    if "MissingConfigException" in kinds:
        return _explain_missing_option(text, conf)
    if "YAMLError" in kinds and (mark := getattr(error, "problem_mark", None)):
        return f"{mark.name}, line {mark.line + 1}: this is not valid YAML ({getattr(error, 'problem', text)})."
    if mixed := re.search(r"hydra:runtime\.choices\.(\w+)", text):
        return (
            f"{mixed[1]} takes one option, but a list in a defaults list would merge several into one. "
            f"Choose one: '- override /{mixed[1]}: <option>'."
        )
    if unknown := re.search(r"Could not override '([^']+)'", text):
        key = unknown[1].split("@")[0]
        if key in known_keys(conf) and not (conf / key).is_dir():  # it accepts new entries
            return entries(key)
        if key.startswith(ARGUMENTS):
            return (
                f"The chosen model does not set {key}. To give the network this argument, add a plus sign: +{key}=..."
            )
        return _explain_unknown_key(key, conf)
    if wrong := re.search(r"Key '(\w+)' not in '\w+'\s+full_key: ([\w.]+)", text):
        return f"{_place_in_yaml(wrong[2], conf)}: {_explain_unknown_key(wrong[2], conf)}"
    if "MlflowException" in kinds:
        return f"MLflow: {text.splitlines()[0]}"
    if "Ambiguous value for argument" in text:
        override = text.split("'")[1]
        key, _, value = override.partition("=")
        each = f"{override} has several values. Add -m to run one job for each of them"
        return f"{each}, or write '{key}=[{value}]' to use them as one list." if takes_lists(key) else f"{each}."
    if several := re.search(r"Sweep parameters '(.*)' requires --multirun", text):
        return f"{several[1]} has several values. Add -m to run one job for each of them."
    if deleted := re.search(r"(~[\w.]+)[^~]*does not support deletion", text):
        return f"{deleted[1]}: this key cannot be removed. Give it another value."
    if "Error merging override" in text:
        override = text.split("\n")[0].removeprefix("Error merging override ").rstrip(".")
        reason = text.split("\n")[1].rstrip(".") if "\n" in text else ""
        return wrong_value(override) or f"{override}: {reason}."
    if there := re.search(r"Could not append to config\. An item is already at '([\w.]+)'", text):
        if takes_entries(there[1]):
            return entries(there[1])
        return f"{there[1]} exists, so it needs no plus sign: {there[1]}=..."
    if "OverrideParseException" in kinds:
        override = getattr(error, "override", "")
        spaced = re.search(r"==|\s=|=\s|^[\w.]+:", override) or "=" not in override
        remedy = "Write key=value, with one equals sign and no spaces." if spaced else "Quote lists: key='[4,8]'."
        return f"{override} cannot be read. {remedy}"
    if text.startswith("Config group override must be a string"):
        groups = sorted(path.name for path in conf.iterdir() if path.is_dir())
        return f"A number was given where a group expects the name of an option (groups: {', '.join(groups)})." + (
            " To change a key, name it in full: quant.bits=4, not quant=4; quant=notebook chooses a method."
        )
    if {"HydraException", "OmegaConfBaseException"} & kinds:
        return text.split("\nSet the environment variable")[0]
    if isinstance(error, OSError):  # such as a full disk, a read-only folder or an unreachable server
        return _explain_system(error, conf)
    return None


def _explain_system(error: OSError, conf: Path) -> str:
    """What the operating system refused, and which keys choose another place."""
    said = f"{error.filename}: {error.strerror}." if error.filename and error.strerror else f"{error}."
    if conf == Path():  # not run.py
        return said
    folders = " Results go to output_dir (or hydra.run.dir), images and networks to cache_dir."
    local = error.errno in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT, errno.ENOTDIR, errno.EDQUOT)
    return f"{said}{folders if local else ''} --traceback shows where."


def refuse_mixtures(overrides: Iterable[str], conf: Path) -> None:
    """Raise `UserError` for a list of options of a group, since Hydra would merge them into one unintended option."""
    for override in overrides:
        key, _, value = override.partition("=")
        group = key.lstrip("+").partition("@")[0].removeprefix("override ").strip("/")
        if group.startswith("~") and group[1:] in presets.default_options():
            raise UserError(f"{override}: every job needs an option of this group. Choose one: {group[1:]}=...")
        if value.lstrip("'\" ").startswith("[") and (conf / group).is_dir() and group != "hydra":
            options = value.strip("'\"[] ").replace(" ", "")
            raise UserError(
                f"{override}: {group} takes one option, but a list would merge several into one. "
                f"To run one job for each of them: {group}={options} -m"
            )


def exit_code(work: Callable[[], str]) -> int:
    """Print the result of `work` and return 0, or print the message for a user's mistake and return 1.

    This is for commands other than run.py.
    """
    write_what_fits()
    try:
        print(work())
    except Exception as error:
        return tell(error, Path())
    return 0


def tell(error: Exception, conf: Path, show_traceback: bool = False) -> int:
    """Print the message for a user's mistake and return the exit code 1. Any other error is raised again."""
    message = explain(error, conf)
    if message is None or show_traceback:
        raise error
    complain(message)
    return 1


def _explain_missing_option(text: str, conf: Path) -> str:
    found = re.search(r"(?:Could not find|Could not load|Cannot find primary config) '?([\w./-]+)'?", text)
    group, _, option = (found[1] if found else "").rpartition("/")
    folder = conf / group
    if not (group and folder.is_dir()):
        return text.split("\nConfig search path")[0]
    options = [path.stem for path in presets.files(group, presets.search_path(sys.argv))]
    return f"{group}={option} is not known.{did_you_mean(option, options)} Allowed: {', '.join(options)}."


def _place_in_yaml(key: str, conf: Path) -> str:
    """The file and line that set a dotted key: `conf/quant/mine.yaml, line 3`."""
    folders = [conf, *map(presets.folder, presets.search_path(sys.argv))]
    for path in [path for folder in folders for path in sorted(folder.rglob("*.yaml"))]:
        try:
            text = read_text(path)
            root = yaml.compose(text)
        except (OSError, ValueError, yaml.YAMLError):  # an invalid file elsewhere is a separate mistake
            continue
        in_group = path.parent not in folders and "@package _global_" not in text
        prefix = f"{path.parent.name}." if in_group else ""
        if key.startswith(prefix) and (line := _line_of(root, key.removeprefix(prefix))):
            return f"{path}, line {line}"
    return "A YAML file"


def _line_of(node: object, key: str) -> int | None:
    """The line, counted from 1, on which a YAML node sets a dotted key."""
    first, _, rest = key.partition(".")
    for name, value in getattr(node, "value", []) if type(node).__name__ == "MappingNode" else []:
        if name.value == key or (name.value == first and not rest):
            return int(name.start_mark.line) + 1
        if name.value == first and (found := _line_of(value, rest)):
            return found
    return None


def _explain_unknown_key(key: str, conf: Path) -> str:
    keys = known_keys(conf) - {key}  # the user's own file may contain the misspelt key
    if "." not in key and (conf / key).is_dir():
        return (
            f"{key} is a group, and its option cannot be chosen here. In a YAML file of conf/experiment the first line "
            f"must be '# @package _global_', and the option is chosen under 'defaults' as '- override /{key}: ...'."
        )
    parent = key.rpartition(".")[0]
    siblings = sorted(name for name in keys if name.rpartition(".")[0] == parent)
    where = f"Keys of '{parent}'" if parent else "Top-level keys"
    allowed = f" {where}: {', '.join(siblings)}." if siblings else ""
    chosen = key.rpartition(".")[2]
    if parent and chosen in {path.stem for path in presets.files(parent, presets.search_path(sys.argv))}:
        return f"There is no key '{key}'. Did you mean {parent}={chosen}?{allowed}"
    near = _full_name(key, keys) or did_you_mean(key, siblings) or did_you_mean(key, keys)
    return f"There is no key '{key}'.{near}{allowed}"


def _full_name(key: str, keys: Iterable[str]) -> str:
    """A sentence with the keys that end like `key` (`bits` for `quant.bits`), or an empty string if there are none."""
    last = key.rpartition(".")[2]
    full = [f"'{name}'" for name in sorted(keys) if name.rpartition(".")[2] == last]
    return f" Did you mean {' or '.join(full)}?" if full else ""
