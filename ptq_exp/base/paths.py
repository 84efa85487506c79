"""The folders of the project."""

import os
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent.parent
CONF = PROJECT_ROOT / "conf"


def as_typed(path: Path) -> str:
    """The path as one would type it here: relative if it is below the working directory."""
    return os.path.relpath(path) if path.absolute().is_relative_to(Path.cwd()) else str(path)
