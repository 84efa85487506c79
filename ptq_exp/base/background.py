"""Background work of a sweep, so that jobs need not wait: reports run in order on a thread, figures in processes."""

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
CORES_PER_PLOT_WORKER = 4  # with a GPU, one plotting process is slower than the evaluation of networks
MOST_PLOT_WORKERS = 4
INTERRUPTED = "Interrupted. Finished work is kept. To continue, run the same command with resume=true."

_worker: ThreadPoolExecutor | None = None
_plot_workers: ProcessPoolExecutor | None = None
_pending: list[Future[None]] = []
_interrupted = threading.Event()


def start() -> None:
    """Let `later` run its work in the background from now on. A sweep calls this in the process of its jobs."""
    global _worker, _plot_workers
    if _worker is None:
        _worker = ThreadPoolExecutor(1, thread_name_prefix="background")
        # Plotting is pure Python, so on a thread it would block the jobs. On a single core a process gains nothing.
        if _cores() > 1:
            count = min(MOST_PLOT_WORKERS, max(1, _cores() // CORES_PER_PLOT_WORKER))
            _plot_workers = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _lower_priority)


def _cores() -> int:
    """The number of cores that this process may use. On a cluster, it is smaller than that of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def later(work: Callable[..., None], *arguments: Any) -> None:
    """Call `work` after all earlier work, or immediately if no sweep has called `start`.

    Raises the exceptions of earlier work, so that a sweep that cannot keep its results stops at its next job.
    """
    if _worker is None or threading.current_thread().name.startswith("background"):
        work(*arguments)
        return
    while _pending and _pending[0].done():
        _pending.pop(0).result()
    _pending.append(_worker.submit(work, *arguments))


def draw(figure: Callable[..., None], *arguments: Any) -> None:
    """Call `figure`, a function of `ptq_exp.reporting.plots`, on plain `arguments`.

    After a sweep has called `start`, it runs in a process of low priority. The figure is finished before any work that
    is passed to `later` afterwards.
    """
    drawing = None
    if _plot_workers is not None:
        with contextlib.suppress(BrokenProcessPool):
            drawing = _plot_workers.submit(figure, *arguments)
    later(_drawn, drawing, figure, *arguments)


def _drawn(drawing: Future[None] | None, figure: Callable[..., None], *arguments: Any) -> None:
    if drawing is not None:
        with contextlib.suppress(BrokenProcessPool):  # the process was killed
            drawing.result()
            return
    if not _interrupted.is_set():
        figure(*arguments)


def heed_interrupts() -> None:
    """End this process within `SECONDS_TO_END` after Ctrl-C or SIGTERM, which a cluster sends before it kills.

    Work that takes longer, for example because a server does not respond, is left to the next start.
    """

    def begin_to_end(*_: object) -> None:
        timer = threading.Timer(SECONDS_TO_END, _end)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    def once_more(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_type is KeyboardInterrupt:  # raised in a destructor or the like, where Python drops it
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
    """Drop the work that has not started, so that `finish` returns once the rest has ended. Called after Ctrl-C."""
    _interrupted.set()
    if _worker is not None:
        _worker.shutdown(wait=False, cancel_futures=True)
    if _plot_workers is not None:
        for process in list((_plot_workers._processes or {}).values()):
            process.kill()


def interrupted() -> bool:
    """Whether `interrupt` was called."""
    return _interrupted.is_set()


def finish() -> list[str]:
    """Wait until all work is done. `later` then runs work immediately again. Returns the error messages."""
    global _worker, _plot_workers
    if _worker is None:
        return []
    _worker.shutdown(wait=True)
    if _plot_workers is not None:
        _plot_workers.shutdown(wait=not _interrupted.is_set(), cancel_futures=True)
    _worker = _plot_workers = None
    pending, _pending[:] = list(_pending), []
    return [problem for future in pending if (problem := _problem(future))]


def _problem(future: Future[None]) -> str:
    try:
        error = future.exception()
    except CancelledError:
        return ""
    return f"{type(error).__name__}: {error}" if error else ""


def _lower_priority() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep handles Ctrl-C and ends this process
    os.nice(10)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the sweep has ended, since a killed sweep cannot end it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
