"""Work that the next job of a sweep need not wait for: figures and logging, in order, on one thread."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_worker: ThreadPoolExecutor | None = None
_pending: list[Future[None]] = []


def start() -> None:
    """From now on, `later` hands its work over. Called by a sweep, in the process that its jobs run in."""
    global _worker
    if _worker is None:
        _worker = ThreadPoolExecutor(1, thread_name_prefix="background")


def later(work: Callable[..., None], *arguments: Any) -> None:
    """Call `work` after everything that was handed over before: at once where no sweep has called `start`.

    Raises what earlier work raised: a sweep whose results cannot be logged stops at its next job.
    """
    if _worker is None or threading.current_thread().name.startswith("background"):
        work(*arguments)
        return
    while _pending and _pending[0].done():
        _pending.pop(0).result()
    _pending.append(_worker.submit(work, *arguments))


def finish() -> None:
    """Wait until everything is done; `later` works at once again. Raises the first error, after all the work."""
    global _worker
    if _worker is None:
        return
    _worker.shutdown(wait=True)
    _worker = None
    pending, _pending[:] = list(_pending), []
    for future in pending:
        future.result()
