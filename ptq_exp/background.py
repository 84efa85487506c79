"""Work that the next job of a sweep need not wait for, in order: logging on a thread, figures in another process."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

_worker: ThreadPoolExecutor | None = None
_artist: ProcessPoolExecutor | None = None
_pending: list[Future[None]] = []


def start() -> None:
    """From now on, `later` hands its work over. Called by a sweep, in the process that its jobs run in."""
    global _worker, _artist
    if _worker is None:
        _worker = ThreadPoolExecutor(1, thread_name_prefix="background")
        # Drawing is all Python, which on a thread would hold up the jobs' own.
        _artist = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _step_back)


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


def draw(figure: Callable[..., None], *arguments: Any) -> None:
    """Call `figure`, a function of `ptq_exp.plots`, on plain `arguments`: as `later`, in a process of low priority."""
    later(_draw, figure, *arguments)


def _draw(figure: Callable[..., None], *arguments: Any) -> None:
    if _artist is not None:
        try:
            _artist.submit(figure, *arguments).result()
            return
        except BrokenProcessPool:  # the process was killed: draw here
            pass
    figure(*arguments)


def finish() -> None:
    """Wait until everything is done; `later` works at once again. Raises the first error, after all the work."""
    global _worker, _artist
    if _worker is None or _artist is None:
        return
    _worker.shutdown(wait=True)
    _artist.shutdown(wait=True)
    _worker = _artist = None
    pending, _pending[:] = list(_pending), []
    for future in pending:
        future.result()


def _step_back() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep, which ends this process
    os.nice(10)
