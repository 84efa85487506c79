"""The folders of the project."""

import os
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent.parent
CONF = PROJECT_ROOT / "conf"


def from_here(path: Path) -> str:
    """The path as text, relative if it is below the working directory."""
    return os.path.relpath(path) if path.absolute().is_relative_to(Path.cwd()) else str(path)
