"""The page of `python run.py --help`: the usual commands, every group and preset, and the usual keys.

Hydra would compose the configuration first, which takes a second.
"""

import re
from collections.abc import Iterable

from ptq_exp.base.options import as_typed, flatten
from ptq_exp.base.paths import CONF
from ptq_exp.base.text import read_text
from ptq_exp.config import presets
from ptq_exp.config.schema import Config

WIDTH = 80
COMMANDS = {
    "python run.py": "4 and 8 bits in one run",
    "python run.py quant.bits=2,3,4 quant=notebook,mse -m": "every combination",
    "python run.py search=fewest": "the smallest network",
    "python run.py checkpoint=my.pth data=image_folder data.root=images.zip": "",
}
KEYS = {
    "checkpoint": "auto, train, pretrained, or a file",
    "data.root": "the folder or archive of the images",
    "quant.bits": "bits of the weights: a number or a list",
    "quant.act_bits": "bits of the activations; null: float",
    "quant.granularity": "what shares a range: model, tensor, channel",
    "quant.alpha_rule": "how the range is found",
    "quant.layers": "layers to quantize: conv, all",
    "quant.sensitivity": "measure each layer by itself",
    "search.max_drop": "the largest acceptable loss in points",
    "trainer.epochs": "null: as usual for the data set",
    "tracking.uri": "the MLflow store; null: mlflow.db here",
    "export": "files for other runtimes: onnx, program, ...",
    "device": "auto, cpu, cuda, cuda:1, ...",
    "seed": "of initial weights and batches",
    "resume": "true: continue an interrupted sweep",
    "quiet": "true: only stages, warnings and tables",
}
EPILOGUE = """\
Your own presets: hydra.searchpath=[file://FOLDER]; with --help they are listed.
docs/configuration.md lists all keys. `--cfg job` prints the configuration of a
command and runs nothing. --traceback shows where an error occurred. Hydra's own
flags: --hydra-help
"""


def page(arguments: Iterable[str] = ()) -> str:
    """The help text, at most `WIDTH` columns wide. It lists presets in the folders that the command line names, too."""
    searchpath = presets.search_path(arguments)
    lines = ["ptq_exp: how few bits can this network take, and why does it break?", ""]
    lines += [f"  {command:53} {says}".rstrip() for command, says in COMMANDS.items()]
    lines += ["", "-m runs one job for every combination of comma-separated values.", ""]
    lines += ["Groups and their options (choose with group=option; * is the default):"]
    for group, says in groups().items():
        lines += [f"{group}: {says}", *_options(group, searchpath)]
    lines += ["", "The usual keys and their defaults (change with key=value):"]
    lines += [f"  {f'{key}={default}':32} {KEYS[key]}" for key, default in _defaults().items()]
    return "\n".join([*lines, "", EPILOGUE])


def groups() -> dict[str, str]:
    """Every group with its meaning, from the comments in conf/config.yaml."""
    found = re.findall(r"^  - (\w+): \w+ +# (.*)$", read_text(CONF / "config.yaml"), re.MULTILINE)
    says = {group: half(said, WIDTH - len(group) - 2) for group, said in found}
    return says | {"hydra/launcher": "where the jobs of a sweep run (default: one after the other)"}


def _options(group: str, searchpath: tuple[str, ...]) -> list[str]:
    chosen = presets.default_options().get(group)
    lines = []
    for path in presets.files(group, searchpath):
        said = " ".join(line[2:] for line in read_text(path).splitlines() if re.match(r"# (?!@package)", line))
        lines.append(_line(f"{path.stem}{' *' if path.stem == chosen else ''}", said))
    return lines


def _line(name: str, says: str) -> str:
    start = f"  {name:15} "
    return (start + half(says, WIDTH - len(start))).rstrip()


def half(text: str, letters: int) -> str:
    """The beginning of a text in at most `letters` letters: its first sentence, or as much of it as fits."""
    plain = re.sub(r" \([^()]*\b(?:19|20)\d\d[^()]*\)", "", text)  # without sources
    first = re.split(r"(?<=[^.]\w)[.;](?: |$)|: (?=`|  )", plain)[0].rstrip(".:")
    parts = re.split(r"(?=, |: | \()", first)
    while len(parts) > 1 and len("".join(parts)) > letters:
        parts.pop()
    shown = "".join(parts)
    if len(shown) <= letters and (shown == first or len(shown.split()) > 1):
        return shown
    return first[: letters - 3].rpartition(" ")[0] + " ..."  # a name alone would say nothing


def _defaults() -> dict[str, str]:
    """The default of every key in `KEYS`, as typed."""
    return {key: as_typed(value) for key, value in flatten(Config()).items() if key in KEYS}
