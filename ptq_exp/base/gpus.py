"""One GPU a job, also where the jobs of a sweep are processes of one machine that all see every GPU."""

import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

_claimed: dict[int, FileLock | None] = {}  # by number: this process's GPU, and the lock that says so


def claim(cards: list[str]) -> int:
    """The number of one of `cards`, names that are unique on this machine, which no other process of this user has.

    It is this process's until it ends, however it ends. Where all are taken they are shared.
    """
    if not _claimed:
        number, lock = next(filter(None, map(_try, enumerate(cards))), (os.getpid() % len(cards), None))
        _claimed[number] = lock
    return next(iter(_claimed))


def _try(card: tuple[int, str]) -> tuple[int, FileLock] | None:
    number, name = card
    lock = FileLock(Path(tempfile.gettempdir()) / f"ptq_exp-{os.getuid()}-{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return number, lock
