"""What commands show: lines, warnings, what library code logs, and progress (a bar on a terminal, lines elsewhere).

Library code logs (`logging.getLogger(__name__)`) and never prints. A command calls `show_logs` once; in a notebook or
another program nothing is shown unless that program sets up logging for itself.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_WIDTH = 130  # where there is no terminal whose width would count
out = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
err = Console(stderr=True, soft_wrap=True, highlight=False)

PLAIN_EVERY_S = 10.0
PACKAGES = ("hist_cache", "extract", "train", "sweeps")  # whose loggers a command shows


class _Lines(logging.Handler):
    """Shows a logged message as a command's own line: information on standard output, warnings on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        if record.levelno >= logging.WARNING:
            warn(record.getMessage())
        else:
            say(record.getMessage())


def show_logs() -> None:
    """Show what the packages log from here on, and progress; called by each command as it starts."""
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, _Lines) for handler in logger.handlers):
            logger.addHandler(_Lines())


def logs_are_shown() -> bool:
    """Whether `show_logs` was called in this process."""
    return any(isinstance(handler, _Lines) for handler in logging.getLogger(PACKAGES[0]).handlers)


def hush() -> None:
    """Show nothing from here on but errors: another process does the talking."""
    out.quiet = err.quiet = True
    for package in PACKAGES:  # without any handler, Python itself would print warnings
        logging.getLogger(package).addHandler(logging.NullHandler())


def say(message: str) -> None:
    """Print one line on standard output."""
    out.print(message, markup=False)


def warn(message: str) -> None:
    """Print one warning line on standard error."""
    err.print(f"warning: {message}", style="yellow" if err.is_terminal else "", markup=False)


class Meter:
    """Counts work done and what it cost; shown by `progress`."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0.0
        self.note = ""
        self.started = time.monotonic()

    def advance(self, n: float = 1, note: str | None = None) -> None:
        self.done += n
        if note is not None:
            self.note = note
        self.show()

    def show(self) -> None:
        """Overridden by the two ways of showing."""

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return self.done / max(time.monotonic() - self.started, 1e-9)

    @property
    def pace(self) -> str:
        """The rate as people read it: a second, or a minute where that is below one."""
        return f"{self.rate:,.1f} {self.unit}/s" if self.rate >= 1 else f"{60 * self.rate:,.1f} {self.unit}/min"

    @property
    def eta_s(self) -> float:
        """Seconds left at the rate so far; NaN before anything is done."""
        return (self.total - self.done) / self.rate if self.done else float("nan")


class _Plain(Meter):
    def __init__(self, title: str, total: int, unit: str) -> None:
        super().__init__(title, total, unit)
        self.last = self.started

    def show(self) -> None:
        now = time.monotonic()
        if now - self.last < PLAIN_EVERY_S or out.quiet:
            return
        self.last = now
        print(
            f"{self.title}: {round(self.done, 1):,g}/{self.total:,} {self.unit}, {self.pace}, "
            f"ETA {duration(self.eta_s)}" + (f", {self.note}" if self.note else ""),
            flush=True,
        )


class _Live(Meter):
    def __init__(self, title: str, total: int, unit: str, bar: Progress) -> None:
        super().__init__(title, total, unit)
        self.bar = bar
        self.task = bar.add_task(title, total=total, note="")

    def show(self) -> None:
        note = self.pace + (f", {self.note}" if self.note else "")
        self.bar.update(self.task, completed=self.done, note=note)


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Meter]:
    """Show `total` units of work with rate and ETA; yields the meter to advance."""
    if not logs_are_shown():
        yield Meter(title, total, unit)
        return
    if not out.is_terminal:
        yield _Plain(title, total, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=out, transient=True) as bar:
        yield _Live(title, total, unit, bar)


def duration(seconds: float) -> str:
    """`5 s`, `3 min 20 s`, `2 h 05 min`; `?` where unknown."""
    if seconds != seconds:
        return "?"
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


def size(n_bytes: float) -> str:
    """Bytes as people read them: `1.5 GB` (decimal units)."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def fail(message: str) -> None:
    """Print one error line on standard error."""
    sys.stdout.flush()
    err.quiet = False
    err.print(f"error: {message}", style="bold red" if err.is_terminal else "", markup=False)
