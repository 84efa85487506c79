"""Every command of the README, on few images and one epoch, as the README writes it."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, Outcome
from PIL import Image

from ptq_exp.models import build_model

BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
LINES = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
LITTLE_LEARNING = ["quant.reconstruction.steps=2", "quant.calibration_images=32"]
COMMANDS = sorted({line for line in LINES if line.startswith("python run.py")})


@pytest.fixture
def users_files(tmp_path: Path) -> None:
    """What the README calls the user's own: a checkpoint and a folder of images."""
    torch.save(build_model("resnet", 2, depth=20).state_dict(), tmp_path / "resnet20.th")
    for split in ("train", "test"):
        for label, colour in (("cat", 40), ("dog", 200)):
            folder = tmp_path / "images.zip" / split / label
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (32, 32), (colour, 10 * number, 0)).save(folder / f"{number}.png")


@pytest.mark.usefixtures("users_files")
@pytest.mark.parametrize("command", COMMANDS)
def test_readme_command(cli: Callable[..., Outcome], command: str) -> None:
    arguments = shlex.split(command)[2:]
    given = " ".join(arguments)
    small = [option for option in TINY if option.split("=")[0] not in given] + LITTLE_LEARNING
    # The overrides of one command line must not be torn apart by a flag.
    flags = [argument for argument in arguments if argument.startswith("-")]
    if "quant=best" in given:
        small.append("quant.reconstruction.distill_steps=2")
    outcome = cli(*[a for a in arguments if a not in flags], *small, *flags)
    assert outcome.code == 0, outcome.err
    assert ("Groups and their options" if "--help" in flags else "95 % interval") in outcome.out


def test_the_make_targets_run_what_the_readme_says() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^sweep:.*\n\t\$\(BIN\)/python run.py quant.bits=4,8 -m$", makefile, re.MULTILINE)
    for tool in ("ruff check", "ruff format --check", "mypy", "pytest"):
        assert tool in makefile.split("test:")[1]
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_lock_file_names_no_registry_and_pins_everything() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert not [line for line in lines if "://" in line or line.startswith("-")]
    assert all(re.match(r"[\w.\[\],-]+==[\w.+]+", line) for line in lines)
