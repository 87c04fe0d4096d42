"""What commands show: lines, warnings, log messages of library code, and progress (a bar on a terminal, else lines).

Library code logs (`logging.getLogger(__name__)`) and never prints. A command calls `show_logs` once. A notebook or
another program that wants to show the messages sets up logging itself.
"""

from __future__ import annotations

import io
import logging
import math
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

PLAIN_WIDTH = 130  # width of the output in characters where it does not go to a terminal
out = Console(soft_wrap=True, highlight=False, emoji=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)

UNPRINTABLE = ("Cc", "Cs")  # categories of Unicode: control characters, lone surrogates
PLAIN_EVERY_S = 10.0  # seconds between two lines of progress where the output does not go to a terminal
BAR = 12  # characters of the live line's bar, and of a note that is worth showing
PACKAGES = ("hist_cache", "extract", "train", "sweeps")  # packages whose log messages a command shows


class _Lines(logging.Handler):
    """Shows a log message as a line of the command: information on standard output, warnings on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        if record.levelno >= logging.WARNING:
            warn(record.getMessage())
        else:
            say(record.getMessage())


def show_logs() -> None:
    """Show the log messages of the packages and progress from now on; each command calls this when it starts."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # of a stream that was redirected after it was opened
                stream.reconfigure(errors="backslashreplace")  # instead of an error for what it cannot show
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, _Lines) for handler in logger.handlers):
            logger.addHandler(_Lines())


def logs_are_shown() -> bool:
    """Tell whether `show_logs` was called in this process."""
    return any(isinstance(handler, _Lines) for handler in logging.getLogger(PACKAGES[0]).handlers)


def hush() -> None:
    """Show only errors from now on, because another process shows everything else."""
    out.quiet = err.quiet = True
    for package in PACKAGES:  # Python itself prints the warnings of a logger that has no handler
        logging.getLogger(package).addHandler(logging.NullHandler())


class _Handover(logging.Handler):
    """Gives warnings to a function."""

    def __init__(self, give: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._give = give

    def emit(self, record: logging.LogRecord) -> None:
        """Give one."""
        with suppress(OSError):  # nobody listens any more
            self._give(record.getMessage())


def show_warnings(give: Callable[[str], None]) -> None:
    """Give the warnings of the packages to a function from now on, in a process that shows nothing itself."""
    for package in PACKAGES:
        logging.getLogger(package).addHandler(_Handover(give))


def printable(text: str) -> str:
    """Return a text without characters that would move the cursor, change colours or cannot be written."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in UNPRINTABLE else ascii(c)[1:-1] for c in text)


def say(message: str) -> None:
    """Print a message on standard output."""
    out.print(printable(message), markup=False)


def warn(message: str) -> None:
    """Print one warning line on standard error."""
    line = printable(message).replace("\n", " ")
    err.print(f"warning: {line}", style="yellow" if err.is_terminal else "", markup=False)


class Meter:
    """Counts finished work and measures its speed; `progress` yields one that also shows them.

    Attributes:
        title: What is being done.
        total: Units of work in all.
        unit: Name of the unit, such as `spots`.
        done: Units that are finished.
        note: A short text shown after the numbers.
        started: Start time, in seconds of `time.monotonic`.
    """

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0.0
        self.note = ""
        self.started = time.monotonic()

    def advance(self, n: float = 1, note: str | None = None) -> None:
        """Count `n` more units as finished, change the note if one is given, and show both."""
        self.done += n
        if note is not None:
            self.note = note
        self.show()

    def show(self) -> None:
        """Show nothing; the subclasses show lines or a bar."""

    @property
    def rate(self) -> float:
        """Finished units per second since the start."""
        return self.done / max(time.monotonic() - self.started, 1e-9)

    @property
    def pace(self) -> str:
        """The rate as text: units per second, or per minute if there is less than one unit per second."""
        return f"{self.rate:,.1f} {self.unit}/s" if self.rate >= 1 else f"{60 * self.rate:,.1f} {self.unit}/min"

    @property
    def eta_s(self) -> float:
        """Seconds left at the rate so far; NaN before the first unit is finished."""
        return (self.total - self.done) / self.rate if self.done else float("nan")


class _Plain(Meter):
    def __init__(self, title: str, total: int, unit: str) -> None:
        super().__init__(title, total, unit)
        self.last_shown = self.started

    def show(self) -> None:
        now = time.monotonic()
        if now - self.last_shown < PLAIN_EVERY_S or out.quiet:
            return
        self.last_shown = now
        line = (
            f"{self.title}: {round(self.done, 1):,g}/{self.total:,} {self.unit}, {self.pace}, "
            f"ETA {duration(self.eta_s)}" + (f", {self.note}" if self.note else "")
        )
        print(printable(line), flush=True)


def live_line(meter: Meter, width: int, ascii_only: bool = False) -> str:
    """The progress of some work in one line: count, rate and time left always, then a bar and the note as they fit.

    Args:
        meter: Of the work.
        width: Characters of the line at most.
        ascii_only: Whether the terminal shows nothing else.
    """
    full_cell, empty_cell, dots = ("=", "-", "...") if ascii_only else ("━", "╌", "…")
    numbers = f"{int(meter.done):,}/{meter.total:,} {meter.unit}, {meter.pace}, ETA {duration(meter.eta_s)}"
    title = meter.title[: max(width - len(numbers) - 1, 0)] if meter.title != meter.unit else ""
    line = f"{title} {numbers}".strip()[:width]
    if (cells := min(width - len(line) - 1, BAR)) >= BAR // 2:
        full = round(cells * min(meter.done / max(meter.total, 1), 1))
        line = f"{line} {full_cell * full}{empty_cell * (cells - full)}"
    note = " ".join(printable(meter.note).split())
    room = width - len(line) - 2
    if note and room >= BAR:
        line += f", {note if len(note) <= room else note[: room - len(dots)] + dots}"
    elapsed = f", {duration(time.monotonic() - meter.started)} so far"
    return line + elapsed if len(line + elapsed) <= width else line


class _Line(ProgressColumn):
    """One line of the width of the terminal, whatever that becomes while the work goes on."""

    def __init__(self, meter: Meter) -> None:
        super().__init__(Column(no_wrap=True))
        self.meter = meter

    def render(self, task: Task) -> Text:
        return Text(live_line(self.meter, out.width, out.options.ascii_only), no_wrap=True, overflow="crop")


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Meter]:
    """Show the progress of some work: finished units, rate and estimated time left.

    Nothing is shown unless `show_logs` was called.

    Args:
        title: What is being done.
        total: Units of work in all.
        unit: Name of the unit, such as `spots`.

    Yields:
        The meter, whose `advance` is called after each piece of work.
    """
    if not logs_are_shown():
        yield Meter(title, total, unit)
        return
    if not out.is_terminal:
        yield _Plain(title, total, unit)
        return
    meter = Meter(title, total, unit)
    with Progress(_Line(meter), console=out, transient=True) as shown:
        shown.add_task(title)
        yield meter


def duration(seconds: float) -> str:
    """Format a duration as `5 s`, `3 min 20 s` or `2 h 05 min`; NaN gives `?`."""
    if math.isnan(seconds):
        return "?"
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


def size(n_bytes: float) -> str:
    """Format a number of bytes in decimal units, such as `1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def fail(message: str) -> None:
    """Print one error line on standard error."""
    sys.stdout.flush()
    err.quiet = False
    err.print(
        f"error: {printable(message)}".replace("\n", " "), style="bold red" if err.is_terminal else "", markup=False
    )
