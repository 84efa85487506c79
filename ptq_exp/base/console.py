"""The terminal: log lines, progress and tables, through rich."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from rich.console import Console, RenderableType
from rich.progress import Progress, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ptq_exp.base.outlook import Span, outlook, short
from ptq_exp.base.text import in_lines, write_what_fits

LOG_WIDTH = 140  # without a terminal, since a log file has no width and tables need one
BAR_WIDTH, LEAST_BAR = 24, 6  # characters
SILENCE = 100.0  # seconds without a line that `quiet` allows


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
    """With `quiet`, only warnings, errors, final tables and a line per stage are shown. The log file contains
    everything."""
    _quiet.set() if on else _quiet.clear()
    for kind in [kind for kind in _shown if kind != "last"]:
        del _shown[kind]


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
    """Progress bars of one line each. A line that is too long for the terminal is wrapped above its bar."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """One bar per task."""
        for task in self.tasks:
            fields = dict(task.fields)
            span = fields.pop("span")
            about = " ".join(filter(None, map(str.strip, fields.values())))
            done = f"{task.percentage:.0f}% {_left(task.time_remaining, span)}"
            room = self.console.width - len(" ".join([task.description, done, about])) - 2
            if room >= LEAST_BAR:
                yield _line(task.description, _bar(task, min(room, BAR_WIDTH)), f"{done} {about}")
            else:
                yield Text(" ".join(filter(None, [task.description, about])), overflow="fold")
                yield _line("", _bar(task, BAR_WIDTH), done)


def _bar(task: Task, width: int) -> RenderableType:
    return ProgressBar(total=max(0, task.total or 0), completed=max(0, task.completed), width=width)


def _line(before: str, bar: RenderableType, after: str) -> RenderableType:
    line = Table.grid(padding=(0, 1, 0, 0))
    line.add_row(*([before] if before else []), bar, Text(after.rstrip(), no_wrap=True))
    return line


def _left(seconds: float | None, span: Span | None) -> str:
    """The time left: of the job and of the sweep if they are known, else of the bar."""
    whole = str(outlook)
    if whole and span:
        return f"left: {whole}"
    own = "-" if seconds is None else short(seconds)
    return f"{own} left" + (f" ({whole})" if whole else "")


@contextmanager
def progress(description: str, total: int, span: Span | None = None, **fields: str) -> Iterator[Any]:
    """A progress bar with the time left; `fields` are short texts beside it.

    `span` is the part of the learning of a bit width that this stage takes. Yields `advance(steps=1, **fields)`, which
    any thread may call. If the output is not a terminal, or with `quiet`, occasional lines show the progress.
    """
    with _counted(total, span) as count:
        if is_quiet() or not console.is_terminal:
            lines = (_QuietLines if is_quiet() else _Lines)(description, total)
            yield lambda steps=1, **_: lines.advance(count(steps))
            return
        with _Bars(console=console, transient=True) as bar:
            task = bar.add_task(description, total=total, span=cast(Any, span), **cast(Any, fields))
            yield lambda steps=1, **changed: bar.update(task, advance=count(steps), **changed)


@contextmanager
def _counted(total: int, span: Span | None) -> Iterator[Callable[[int], int]]:
    """Yields a function that counts the steps of a stage for the outlook of the whole job, and returns them."""
    if span is None:
        yield lambda steps: steps
        return
    outlook.stage_begins(span[0])
    last = [time.monotonic()]

    def count(steps: int) -> int:
        now = time.monotonic()
        outlook.advance(steps / total * (span[1] - span[0]), now - last[0])
        last[0] = now
        return steps

    yield count


class _Lines:
    """Progress as plain lines. The time of each line is 1.5 times that of the line before."""

    def __init__(self, description: str, total: int):
        self.description, self.total, self.done, self.lock = description, total, 0, threading.Lock()
        self.skipped, self.started, self.next = 0, time.monotonic(), FIRST_LINE_SECONDS

    def advance(self, steps: int = 1) -> None:
        """Count `steps` as done."""
        with self.lock:
            seconds = time.monotonic() - self.started
            if seconds < 0.1:  # steps of an earlier run, counted when a training is resumed
                self.skipped += steps
            self.done += steps
            now = self.done - self.skipped
            if now <= 0 or self.done >= self.total or not self.due(seconds):
                return
        left = seconds * (self.total - self.done) / now
        whole = f" ({outlook})" if str(outlook) else ""
        done = f"{100 * self.done / self.total:.0f} %"
        self.say(f"{self.description}: {done}, about {duration(left)} left{whole}")

    def due(self, seconds: float) -> bool:
        """Whether it is time for a line, so many seconds after the begin."""
        if seconds < self.next:
            return False
        self.next = 1.5 * seconds
        return True

    def say(self, line: str) -> None:
        """Show a line."""
        log.info("%s", line)


class _QuietLines(_Lines):
    """With `quiet`: one line when a stage of a new kind has begun, and one after `SILENCE` seconds without any."""

    def due(self, seconds: float) -> bool:
        kind, now = self.description.partition(" ")[0], time.monotonic()
        if now - _shown["last"] < SILENCE and (kind in _shown or seconds < FIRST_LINE_SECONDS / 2):
            return False
        _shown[kind] = _shown["last"] = now
        return True

    def say(self, line: str) -> None:
        super().say(line)
        console.print(line)


_shown: dict[str, float] = {"last": time.monotonic()}  # with `quiet`: when the last line of each kind was shown


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
