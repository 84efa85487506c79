"""The guard of tests/conftest.py: a session that leaves something in the working tree fails."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, mostly_slow


@pytest.mark.parametrize(
    ("line", "left", "workers"),
    mostly_slow(
        [
            ("pass", None, "0"),
            ("(ROOT / 'outputs' / 'new').mkdir()", "outputs/new", "0"),
            ("(ROOT / 'outputs' / 'new').mkdir()", "outputs/new", "2"),
            ("(ROOT / 'mlflow.db').write_text('changed')", "mlflow.db", "0"),
            ("(ROOT / 'docs' / 'page.md').unlink()", "docs/page.md", "0"),
            ("(ROOT / 'docs' / 'page.md').write_text('edited meanwhile')", None, "0"),
            ("(ROOT / 'tests' / '__pycache__' / 'x').mkdir(parents=True)", None, "0"),
        ],
        2,
    ),
)
def test_a_session_that_changes_the_working_tree_fails(
    tmp_path: Path, line: str, left: str | None, workers: str
) -> None:
    for folder in ("tests", "outputs", "docs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "mlflow.db").write_text("a store", encoding="utf-8")
    (tmp_path / "docs" / "page.md").write_text("a page", encoding="utf-8")
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    code = f"from conftest import ROOT\n\n\ndef test_it() -> None:\n    {line}\n"
    (tmp_path / "tests" / "test_it.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-n", workers, "--rootdir", str(tmp_path), "tests"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "1 passed" in done.stdout or "100%" in done.stdout, done.stdout
    assert done.returncode == (0 if left is None else 1), done.stdout
    assert (left is None) == ("The working tree changed" not in done.stdout)
    assert left is None or left in done.stdout
