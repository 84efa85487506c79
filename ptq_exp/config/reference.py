"""`python -m ptq_exp.config.reference`: writes docs/configuration.md from the schema and from what the files under conf/ say.

With `--check` it writes nothing and exits with 1 where the page is not what it would write.
"""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.base.text import read_text, write_text
from ptq_exp.config import Config, DataConfig, TrainerConfig
from ptq_exp.quantization.options import QuantConfig, ReconstructionConfig
from ptq_exp.reporting.mlflow.options import TrackingOptions

CONF = PROJECT_ROOT / "conf"
PAGE = PROJECT_ROOT / "docs" / "configuration.md"
# Group, the option that shows its keys, and the dataclass that gives their types; None where any key is allowed.
GROUPS: list[tuple[str, str, Any]] = [
    ("model", "resnet20", None),
    ("data", "image_folder", DataConfig),
    ("optimizer", "sgd", None),
    ("scheduler", "multistep", None),
    ("trainer", "default", TrainerConfig),
    ("quant", "notebook", QuantConfig),
    ("tracking", "mlflow", TrackingOptions),
]
LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w]+):(?P<value>[^#]*)(?:#(?P<says>.*))?$")
INTRODUCTION = """\
# Configuration

Written by `python -m ptq_exp.config.reference` from the schema (`ptq_exp/config/__init__.py`, `ptq_exp/quantization/options.py`) and the
comments of the files under `conf/`; a test checks that it is up to date.

Every key is changed on the command line by its dotted name, `quant.bits=4`; a group's option is chosen by the group's
name, `quant=best`. `a,b` with `-m` runs one job for each value, `'[a,b]'` is one list. `python run.py --cfg job` and
the same words print what they come to. An experiment of your own is a YAML file in `conf/experiment/`, chosen with
`experiment=<its name>`.

## Shell completion

`eval "$(python run.py -sc install=bash)"` lets Bash complete groups, options and keys after `python run.py` with the
tab key; `install=zsh` and `install=fish` are for the others (`python run.py --hydra-help` says more).
"""


def page() -> str:
    """The Markdown page."""
    parts = [INTRODUCTION, "## Top level\n", _table(CONF / "config.yaml", "", Config)]
    for group, shown, schema in GROUPS:
        parts += [f"## {group}\n", _options(group), _table(CONF / group / f"{shown}.yaml", f"{group}.", schema)]
        if schema is None:
            parts.append("Any other key is handed on to what is built from the group.\n")
    parts += ["## hydra/launcher\n", _options("hydra/launcher"), "See [scaling](scaling.md).\n"]
    parts += ["## experiment\n", _options("experiment")]
    return "\n".join(parts)


def _options(group: str) -> str:
    """One line an option of a group: the first sentence of its file."""
    lines = []
    for path in sorted((CONF / group).glob("*.yaml")):
        comments = [line[1:].strip() for line in read_text(path).splitlines() if line.startswith("# ")]
        said = " ".join(line for line in comments if not line.startswith("@package"))
        lines.append(f"* `{group}={path.stem}`: {re.split(r'(?<=[.:]) (?=[A-Z]|python)', said)[0].rstrip(':')}")
    return "\n".join(lines) + "\n"


def _table(path: Path, prefix: str, schema: Any) -> str:
    """Key, default, type and what the file says of it. Raises `ValueError` where file and schema differ."""
    types = _types(schema) if schema else {}
    rows: dict[str, list[str]] = {}
    section = last = ""
    for line in read_text(path).splitlines():
        found = LINE.match(line)
        if found and not line.startswith(("defaults:", "hydra:")):
            if not found["indent"]:
                section = ""
            last = f"{section}{found['key']}"
            value, says = found["value"].strip(), (found["says"] or "").strip()
            if not value:  # a mapping of its own: reconstruction
                section, last = f"{last}.", ""
                continue
            if last == "name" or (schema and last not in types):
                last = ""
                continue
            rows[last] = [value, says]
        elif last and re.match(r"^ +#", line):
            text = line.strip().lstrip("# ")
            rows[last][1] += ("; " if re.match(r"\w+:", text) else " ") + text
    groups = {group for group, _, _ in GROUPS} | {"name", "reconstruction"}
    if missing := [key for key in types if key not in rows and key not in groups]:
        raise ValueError(f"{path} does not say what {', '.join(missing)} is.")
    head = ["| key | default | type | |", "|---|---|---|---|"]
    cells = [
        f"| `{prefix}{key}` | `{value}` | {_escaped(types.get(key, ''))} | {_escaped(says)} |"
        for key, (value, says) in rows.items()
    ]
    return "\n".join([*head, *cells]) + "\n"


def _types(schema: Any) -> dict[str, str]:
    found = {field.name: _type_name(field.type) for field in dataclasses.fields(schema)}
    if schema is QuantConfig:
        found |= {f"reconstruction.{key}": value for key, value in _types(ReconstructionConfig).items()}
        found["bits"] = "int or list[int]"
        found["layer_bits"], found["mixed_candidates"] = "dict[str, int or 1.6]", "list[int or 1.6]"
    return found


def _type_name(kind: Any) -> str:
    return str(kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else kind)


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
