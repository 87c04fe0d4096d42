"""What Ctrl-C and SIGTERM do, in one place for all commands."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = {signal.SIGINT, signal.SIGTERM}
STOP = threading.Event()
"""Set when what other threads are at is wanted no more; those that may take long look at it now and then."""


class Terminated(KeyboardInterrupt):
    """The system asked the process to end, by SIGTERM; as after Ctrl-C, everything is left in order."""


def raise_interrupt(number: int, frame: object) -> None:
    """Handle a signal as Ctrl-C is handled, once: what is put in order then is not to be interrupted by SIGTERM."""
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_IGN)
        raise Terminated
    raise KeyboardInterrupt


class GracefulStop:
    """Ctrl-C, or a scheduler's SIGTERM, asks to stop; asked a second time, KeyboardInterrupt is raised at once.

    Outside the main thread, which alone hears signals, it does nothing.

    Attributes:
        requested: How often it was asked for.
    """

    def __init__(self, message: str, on_request: Callable[[], None] | None = None) -> None:
        self.requested = 0
        self._first = signal.SIGINT
        self._message, self._on_request = message, on_request
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _request(self, number: int, frame: object) -> None:
        self.requested += 1
        if self.requested == 1:
            self._first = signal.Signals(number)
            log.info(self._message)
        if self._on_request is not None:
            self._on_request()
        elif self.requested > 1:
            raise KeyboardInterrupt

    def interrupt(self) -> KeyboardInterrupt:
        """Return what to raise when all has stopped that was asked to."""
        return Terminated() if self._first == signal.SIGTERM else KeyboardInterrupt()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Have SIGTERM raise `Terminated`; outside the main thread, which alone hears signals, it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGTERM, raise_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
