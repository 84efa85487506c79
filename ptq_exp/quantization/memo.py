"""What several quantizations of one float network have in common."""

from collections.abc import Callable, Hashable
from typing import TypeVar

T = TypeVar("T")


class Memo:
    """Values computed once: one memo belongs to one float model, one draw of calibration images and one seed."""

    def __init__(self) -> None:
        self._values: dict[Hashable, object] = {}

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value called `key`, computed at the first call; `key` must name everything else that it depends on."""
        if key not in self._values:
            self._values[key] = compute()
        return self._values[key]  # type: ignore[return-value]
