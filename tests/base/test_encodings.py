"""Terminals and locales without UTF-8: all work is done, and what is shown can be read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FEW, ROOT, TINY
from PIL import Image

from ptq_exp.base.text import read_text, write_text

OLD_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # open() is ASCII, too


def run(folder: Path, *arguments: str, **environment: str) -> tuple[str, bytes]:
    """The encoded output of a job in `folder` that must succeed, and its errors."""
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode(environment["PYTHONIOENCODING"]), done.stderr


@pytest.mark.parametrize(
    ("environment", "dash"),
    [
        pytest.param({"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, "-", marks=pytest.mark.slow),
        pytest.param({"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"}, "-", marks=pytest.mark.slow),
        pytest.param(OLD_LOCALE | {"PYTHONIOENCODING": "ascii"}, "-", marks=pytest.mark.slow),
        pytest.param({"PYTHONIOENCODING": "utf-8"}, "–", marks=pytest.mark.slow),
    ],
    ids=["ascii", "latin-1", "ascii-files", "utf-8"],
)
def test_a_sweep_ends_well_whatever_the_terminal_knows(
    environment: dict[str, str], dash: str, tmp_path: Path, cache: Path
) -> None:
    out, err = run(tmp_path, *TINY, "quant.bits=3,6", "tracking=none", f"cache_dir={cache}", "-m", **environment)
    assert b"Error" not in err
    lines = [line for line in out.splitlines() if f" {dash} " in line and "distinguishable" in line]
    assert len(lines) == 2, out  # the rows of both jobs, with their intervals
    assert ("┏" in out) == (dash == "–")
    (report,) = tmp_path.glob("outputs/*/*/sweep/report.html")
    assert "0.00 – " in read_text(report) or " – +" in read_text(report)


@pytest.mark.slow
def test_names_in_other_scripts_are_kept_in_files_and_escaped_on_the_screen(tmp_path: Path, store: str) -> None:
    folder = tmp_path / "Bücher 猫"
    for split in ("train", "test"):
        for label, colour in (("Käfer", 40), ("猫", 200)):
            (folder / "Bücher 猫" / split / label).mkdir(parents=True)
            for number in range(4):
                image = Image.new("RGB", (32, 32), (colour, 10 * number, 0))
                image.save(folder / "Bücher 猫" / split / label / f"{number}.png")
    few = [*[word for word in FEW if "data" not in word], "model.depth=8", "data=image_folder", "quant.bits=4"]
    where = ["data.root='Bücher 猫'", f"tracking.uri={store}", f"cache_dir={tmp_path / 'cache'}"]
    out, _ = run(folder, *few, *where, LC_ALL="C", PYTHONIOENCODING="ascii")
    (report,) = folder.glob("outputs/*/*/artifacts/report.html")
    assert "Report: " in out
    assert "B\\xfccher \\u732b" in out
    assert "weight" in read_text(report)
    assert "Float top-1" in next(folder.glob("outputs/*/*/run.log")).read_text(encoding="utf-8")


def test_text_that_is_no_utf_8_is_written_with_escapes(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "name \udcfc – ±")
    assert read_text(tmp_path / "a") == "name \\udcfc – ±"
