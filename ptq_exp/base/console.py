"""The terminal: log lines, progress and tables, through rich."""

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ptq_exp.base.text import in_lines, write_what_fits

LOG_WIDTH = 140  # without a terminal, since a log file has no width and tables need one
BAR_WIDTH = 24
BAR_NUMBERS = 26  # characters for percentage, elapsed time and time left beside the bar


class Terminal(Console):
    """A console that breaks lines only between words; rich would also break within words."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print like `rich.console.Console.print`, with lines that fit."""
        texts = [in_lines(found, self.width) if isinstance(found, str) else found for found in objects]
        defaults: dict[str, Any] = {"overflow": "ignore", "crop": False}
        super().print(*texts, **defaults | options)


def _make_console() -> Console:
    # No markup, since overrides and paths may contain brackets.
    terminal = Terminal(highlight=False, markup=False)
    if terminal.is_terminal:
        return terminal
    return Console(soft_wrap=True, highlight=False, markup=False, width=LOG_WIDTH)


write_what_fits()
console = _make_console()
log = logging.getLogger("ptq_exp")
FIRST_LINE_SECONDS = 10.0  # without a terminal: time of the first progress line; the intervals then increase
_quiet = threading.Event()


def set_quiet(on: bool) -> None:
    """With `quiet`, only warnings, errors and final tables are shown. The log file contains everything."""
    _quiet.set() if on else _quiet.clear()


def is_quiet() -> bool:
    """Whether `set_quiet` is on."""
    return _quiet.is_set()


class Handler(logging.Handler):
    """Prints log records on the shared console, above any active progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        if is_quiet() and record.levelno < logging.WARNING:
            return
        style = "yellow" if record.levelno >= logging.WARNING else None
        console.print(self.format(record), style=style)


class _Bars(Progress):
    """Progress bars with their texts, beside the bar if the terminal is wide enough, else wrapped above it."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """One bar per task."""
        for task in self.tasks:
            bar = self.make_tasks_table([task])
            texts = [task.description, "  ".join(task.fields.values())]
            if sum(map(len, texts)) + 2 + BAR_WIDTH + BAR_NUMBERS <= self.console.width:
                line = Table.grid(padding=(0, 1))
                line.add_row(texts[0], bar, texts[1])
                yield line
            else:
                yield Text("  ".join(filter(None, texts)), overflow="fold")
                yield bar


@contextmanager
def progress(description: str, total: int, **fields: str) -> Iterator[Any]:
    """A progress bar with the time left; `fields` are short texts beside it.

    Yields `advance(steps=1, **fields)`, which any thread may call. If the output is not a terminal, occasional lines
    show the progress.
    """
    if not console.is_terminal:
        yield _Lines(description, total).advance
        return
    columns = [BarColumn(bar_width=BAR_WIDTH), TextColumn("{task.percentage:>3.0f}%")]
    columns += [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    with _Bars(*columns, console=console, transient=True, disable=is_quiet()) as bar:
        task = bar.add_task(description, total=total, **cast(Any, fields))
        yield lambda steps=1, **changed: bar.update(task, advance=steps, **changed)


class _Lines:
    """Progress as plain lines. The time of each line is 1.5 times that of the line before."""

    def __init__(self, description: str, total: int):
        self.description, self.total, self.done, self.lock = description, total, 0, threading.Lock()
        self.skipped, self.started, self.next = 0, time.monotonic(), FIRST_LINE_SECONDS

    def advance(self, steps: int = 1, **_: str) -> None:
        """Count `steps` as done."""
        with self.lock:
            seconds = time.monotonic() - self.started
            if seconds < 0.1:  # steps of an earlier run, counted when a training is resumed
                self.skipped += steps
            self.done += steps
            now = self.done - self.skipped
            if seconds < self.next or now <= 0 or self.done >= self.total:
                return
            self.next = 1.5 * seconds
        left = seconds * (self.total - self.done) / now
        log.info("%s: %.0f %%, about %s left", self.description, 100 * self.done / self.total, duration(left))


def duration(seconds: float) -> str:
    """A duration as text, to about two digits."""
    if seconds > 2 * 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds > 120 else f"{seconds:.0f} s"


def track(items: Iterable[Any], total: int, description: str) -> Iterator[Any]:
    """Yield `items` and show the progress towards `total`."""
    if not console.is_terminal:
        log.info("%s: %d", description, total)
    with progress(description, total) as advance:
        for item in items:
            yield item
            advance()
