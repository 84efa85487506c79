"""`python -m ptq_exp.config.reference`: write docs/configuration.md from the schema.

With `--check` it writes nothing, and exits with 1 if the page is out of date.
"""

import dataclasses
import re
import sys
from typing import Any

from ptq_exp.base.options import as_typed, flatten, type_in_words
from ptq_exp.base.paths import CONF, PROJECT_ROOT
from ptq_exp.base.text import read_text, write_text
from ptq_exp.config import presets
from ptq_exp.config.schema import Config

PAGE = PROJECT_ROOT / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration

Written by `python -m ptq_exp.config.reference` from the schema: the dataclasses in `ptq_exp/*/options.py` and
`ptq_exp/config/schema.py`. A test checks that it is up to date.

To change a key on the command line, use its dotted name: `quant.bits=4`. To choose a group's option, use the group's
name: `quant=best`. `a,b` with `-m` runs one job for each value; `'[a,b]'` is one list. `python run.py --cfg job`
followed by the same words prints the resulting configuration. To define your own experiment, add a YAML file to
`conf/experiment/` and choose it with `experiment=<its name>`. Files of your own can also lie in another folder, which
`'hydra.searchpath=[file://FOLDER]'` names ([presets](how-to/new-method.md)).

## Shell completion

`eval "$(python run.py -sc install=bash)"` lets Bash complete groups, options and keys after `python run.py` with the
tab key. For other shells use `install=zsh` or `install=fish` (see `python run.py --hydra-help`).
"""
HEAD = ["| key | default | type | |", "|---|---|---|---|"]


def page() -> str:
    """The Markdown page."""
    top = presets.parse(read_text(CONF / "config.yaml"))
    parts = [INTRODUCTION, "## Top level\n", _table(_rows(Config, "", top))]
    for field in dataclasses.fields(Config):
        group = field.name
        if not (CONF / group).is_dir():
            continue
        parts += [f"## {group}\n", _options(group)]
        if dataclasses.is_dataclass(field.type):
            parts.append(_table(_rows(field.type, f"{group}.", {})))
        else:  # any key is allowed, so an option's file is more informative than a type
            default = CONF / group / f"{presets.default_options()[group]}.yaml"
            parts.append(f"`conf/{group}/{default.name}`:\n\n```yaml\n{read_text(default)}```\n")
            parts.append("Any other key is passed on to the object that is built from the group.\n")
    parts += ["## hydra/launcher\n", _options("hydra/launcher"), "See [scaling](scaling.md).\n"]
    parts += ["## experiment\n", _options("experiment")]
    return "\n".join(parts)


def _options(group: str) -> str:
    """One line per option of a group: the first sentence of its file and, for a group with a schema, what it inherits
    and sets."""
    typed = any(field.name == group and dataclasses.is_dataclass(field.type) for field in dataclasses.fields(Config))
    lines = []
    for path in sorted((CONF / group).glob("*.yaml")):
        text = read_text(path)
        comments = [line[1:].strip() for line in text.splitlines() if line.startswith("# ")]
        said = " ".join(line for line in comments if not line.startswith("@package"))
        sentence = re.split(r"(?<=[.:]) (?=[A-Z]|python)", said)[0].rstrip(":")
        content = presets.parse(text) or {} if typed and presets.GLOBAL not in text else {}
        bases = [f"Inherits from `{base}`." for base in content.pop("defaults", []) if base != "_self_"]
        values = {key: value for key, value in flatten(content).items() if key not in ("", "name")}
        shown = ", ".join(f"`{key}={as_typed(value)}`" for key, value in values.items())
        about = [sentence, *bases, f"Sets {shown}." if shown else ""]
        lines.append(f"* `{group}={path.stem}`: {' '.join(filter(None, about))}")
    return "\n".join(lines) + "\n"


def _rows(kind: Any, prefix: str, values: dict[str, Any]) -> list[list[str]]:
    """Key, default, type and meaning of every documented field, including nested ones."""
    rows = []
    for field in dataclasses.fields(kind):
        key = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(field.type):
            rows += _rows(field.type, f"{key}.", {}) if prefix else []
        elif "says" in field.metadata:
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            rows.append([key, as_typed(values.get(field.name, default)), type_in_words(field), field.metadata["says"]])
    return rows


def _table(rows: list[list[str]]) -> str:
    lines = [f"| `{key}` | `{default}` | {_escaped(kind)} | {_escaped(says)} |" for key, default, kind, says in rows]
    return "\n".join([*HEAD, *lines]) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "or").replace("<", "&lt;")


def main() -> int:
    """Write the page, or check it."""
    text = page()
    if "--check" not in sys.argv:
        write_text(PAGE, text)
        return 0
    if PAGE.exists() and read_text(PAGE) == text:
        return 0
    print(f"{PAGE} is out of date. Run: python -m ptq_exp.config.reference", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
