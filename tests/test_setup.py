"""Set-up: what the README calls its two commands, and the lock file."""

import re

from conftest import ROOT


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
