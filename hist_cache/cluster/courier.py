"""Messages of a worker that is no child of the command's: they are posted about twice a second, where all are read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hist_cache.executor import TICK_S


class Courier:
    """Posts messages in their order, and hears from where they are read whether to stop.

    Args:
        post: Delivers messages; returns whether work shall stop. Where it raises, the messages are posted again later.
        on_stop: Called once, in the courier's thread, when there is work that shall stop.
    """

    def __init__(self, post: Callable[[list[Any]], bool], on_stop: Callable[[], None]) -> None:
        self._post, self._on_stop = post, on_stop
        self._messages: list[Any] = []
        self._writing, self._posting = threading.Lock(), threading.Lock()
        self._at_work = 0
        self.stopping = False
        self._busy = threading.Event()
        threading.Thread(target=self._live, name="courier", daemon=True).start()

    def send(self, message: Any) -> None:
        """Take a message to be posted soon."""
        with self._writing:
            self._messages.append(message)

    @contextmanager
    def work(self) -> Iterator[None]:
        """Post regularly while the block runs, and all that is left at its end."""
        with self._writing:
            self._at_work += 1
            self._busy.set()
        try:
            yield
        finally:
            with self._writing:
                self._at_work -= 1
                if not self._at_work:
                    self._busy.clear()
            self.flush()  # also where none are left: it waits for those that are being posted

    def flush(self) -> None:
        """Post now; where that fails, the messages are kept."""
        with self._posting:
            with self._writing:
                messages, self._messages = self._messages, []
            try:
                stop = self._post(messages)
            except Exception:  # where they are read is started again, or nobody reads them any more
                with self._writing:
                    self._messages = messages + self._messages
                return
        if stop and self._at_work and not self.stopping:
            self.stopping = True
            self._on_stop()

    def _live(self) -> None:
        pause = threading.Event()
        while True:
            self._busy.wait()
            pause.wait(TICK_S)
            self.flush()
