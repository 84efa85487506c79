"""The terminal: log lines, progress and tables, through rich."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(soft_wrap=True, highlight=False)
if not console.is_terminal:  # a log file has no width: tables keep their columns
    console = Console(soft_wrap=True, highlight=False, width=140)
log = logging.getLogger("ptq_exp")


class Handler(logging.Handler):
    """Log records on the shared console, above a progress bar that may be running."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        console.print(self.format(record), style=style, markup=False)


@contextmanager
def progress(description: str, total: int, **fields: str) -> Iterator[Any]:
    """A progress bar with time left; `fields` are short texts shown after it.

    Yields `advance(steps=1, **fields)`. Where the output is not a terminal nothing moves: the caller's log
    lines tell the story there.
    """
    columns = [TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.percentage:>3.0f}%")]
    columns += [TextColumn("{task.fields[" + name + "]}") for name in fields]
    columns += [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total, **cast(Any, fields))
        yield lambda steps=1, **changed: bar.update(task, advance=steps, **changed)


def track(items: Iterable[Any], total: int, description: str) -> Iterator[Any]:
    """Pass `items` on, showing how many of `total` went by."""
    if not console.is_terminal:
        log.info("%s: %d", description, total)
    with progress(description, total) as advance:
        for item in items:
            yield item
            advance()
