"""What the command line shows: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 15.0  # where there is no terminal, seconds between two lines

PLAIN_WIDTH = 120  # columns of a table that goes to a file or a pipe

out = Console(highlight=False, soft_wrap=True)
if not out.is_terminal and "COLUMNS" not in os.environ:
    out.width = PLAIN_WIDTH
err = Console(stderr=True, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds in words that fit their size."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def size(num_bytes: int) -> str:
    """Bytes in the unit that fits."""
    return f"{num_bytes / 2**20:.0f} MiB" if num_bytes < 2**30 else f"{num_bytes / 2**30:.1f} GiB"


class Bar:
    """Progress of one piece of work."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.done = 0
        self.total: int | None = None
        self.started = self.printed = time.monotonic()
        self.display: Progress | None = None
        if err.is_terminal:
            self.display = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=err,
                transient=True,
            )
            self._task = self.display.add_task(name, total=None)

    def start(self, total: int) -> None:
        """Say how much there is to do."""
        self.total = total
        self.started = time.monotonic()
        if self.display is not None:
            self.display.update(self._task, total=total, completed=self.done)

    def update(self, done: int, total: int) -> None:
        """Set both, for callers that count themselves."""
        if self.total != total:
            self.start(total)
        self.advance(done - self.done)

    def advance(self, amount: int = 1) -> None:
        """Count finished pieces; negative when a piece has to be done again."""
        self.done += amount
        if self.display is not None:
            self.display.update(self._task, completed=self.done)
        elif self.total and time.monotonic() - self.printed > LINE_SECONDS:
            self.printed = time.monotonic()
            left = (self.printed - self.started) / max(self.done, 1) * (self.total - self.done)
            # The first pieces come after the workers' start-up and say little about the rest.
            rest = f", about {left:.0f} s left" if self.done >= self.total * 0.02 else ""
            err.print(f"{self.name}: {self.done} of {self.total}{rest}")


@contextmanager
def progress(name: str) -> Iterator[Bar]:
    """Show a bar while the block runs."""
    bar = Bar(name)
    if bar.display is None:
        yield bar
    else:
        with bar.display:
            yield bar


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show that something is going on that has no parts to count."""
    if err.is_terminal:
        with err.status(text):
            yield
    else:
        yield
