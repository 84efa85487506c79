"""Progress of what takes seconds, told to whoever wants to show it."""

import contextlib
from collections.abc import Callable
from typing import Any

Progress = Callable[[str, int], Any]  # (description, steps) -> context manager that yields `advance()`


def shown(progress: Progress | None, description: str, steps: int) -> Any:
    """A context manager that yields `advance()`: of a progress bar, or one that does nothing."""
    return progress(description, steps) if progress else contextlib.nullcontext(lambda: None)
