"""Work that the next job of a sweep need not wait for: logging on a thread, in order, figures in other processes."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

SECONDS_TO_END = 1.6
CORES_AN_ARTIST = 4  # where a GPU evaluates, one process would not draw as fast as the networks come
MOST_ARTISTS = 4
INTERRUPTED = "Interrupted. What was finished is kept; the same command with resume=true goes on."

_worker: ThreadPoolExecutor | None = None
_artists: ProcessPoolExecutor | None = None
_pending: list[Future[None]] = []
_interrupted = threading.Event()


def start() -> None:
    """From now on, `later` hands its work over. Called by a sweep, in the process that its jobs run in."""
    global _worker, _artists
    if _worker is None:
        _worker = ThreadPoolExecutor(1, thread_name_prefix="background")
        # Drawing is all Python, which on a thread would hold up the jobs' own.
        count = min(MOST_ARTISTS, max(1, _cores() // CORES_AN_ARTIST))
        _artists = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _step_back)


def _cores() -> int:
    """Those that this process may use: on a cluster a job has few of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def later(work: Callable[..., None], *arguments: Any) -> None:
    """Call `work` after everything that was handed over before: at once where no sweep has called `start`.

    Raises what earlier work raised: a sweep whose results cannot be kept stops at its next job.
    """
    if _worker is None or threading.current_thread().name.startswith("background"):
        work(*arguments)
        return
    while _pending and _pending[0].done():
        _pending.pop(0).result()
    _pending.append(_worker.submit(work, *arguments))


def draw(figure: Callable[..., None], *arguments: Any) -> None:
    """Call `figure`, a function of `ptq_exp.reporting.plots`, on plain `arguments`: in a process of low priority where
    a sweep has called `start`. What is handed to `later` afterwards finds it drawn."""
    drawing = None
    if _artists is not None:
        with contextlib.suppress(BrokenProcessPool):
            drawing = _artists.submit(figure, *arguments)
    later(_drawn, drawing, figure, *arguments)


def _drawn(drawing: Future[None] | None, figure: Callable[..., None], *arguments: Any) -> None:
    if drawing is not None:
        with contextlib.suppress(BrokenProcessPool):  # the process was killed
            drawing.result()
            return
    if not _interrupted.is_set():
        figure(*arguments)


def heed_interrupts() -> None:
    """Ctrl-C, and SIGTERM, which a cluster sends before it kills, end this process in time: whatever still keeps it
    then, a server that does not answer say, is left to the next start (`tracking.store.close_dead_runs`)."""

    def begin_to_end(*_: object) -> None:
        timer = threading.Timer(SECONDS_TO_END, _end)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    def once_more(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_type is KeyboardInterrupt:  # it struck in a destructor or the like, where Python drops it
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = once_more
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, begin_to_end)


def _end() -> None:
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(130)


def interrupt() -> None:
    """Ctrl-C: what has not begun is dropped, and `finish` returns as soon as what has is over."""
    _interrupted.set()
    if _worker is not None and _artists is not None:
        _worker.shutdown(wait=False, cancel_futures=True)
        for process in list((_artists._processes or {}).values()):
            process.kill()


def interrupted() -> bool:
    """Whether `interrupt` was called."""
    return _interrupted.is_set()


def finish() -> list[str]:
    """Wait until everything is done; `later` works at once again. Returns the errors of the work, in words."""
    global _worker, _artists
    if _worker is None or _artists is None:
        return []
    _worker.shutdown(wait=True)
    _artists.shutdown(wait=not _interrupted.is_set(), cancel_futures=True)
    _worker = _artists = None
    pending, _pending[:] = list(_pending), []
    return [problem for future in pending if (problem := _problem(future))]


def _problem(future: Future[None]) -> str:
    try:
        error = future.exception()
    except CancelledError:
        return ""
    return f"{type(error).__name__}: {error}" if error else ""


def _step_back() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep, which ends this process
    os.nice(10)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A sweep that was killed could not end this process, which would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
