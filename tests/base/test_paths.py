"""Paths in messages."""

from pathlib import Path

import pytest

from ptq_exp.base.paths import from_here


def test_a_path_below_the_working_directory_is_shown_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert from_here(tmp_path / "outputs" / "report.html") == "outputs/report.html"
    assert from_here(Path("outputs/report.html")) == "outputs/report.html"
    monkeypatch.chdir("/")
    assert from_here(Path("/outputs")) == "outputs"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert from_here(tmp_path / "outputs") == str(tmp_path / "outputs")
