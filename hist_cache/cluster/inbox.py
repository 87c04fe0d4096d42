"""The mailbox of a cluster's processes as the command uses it."""

from __future__ import annotations

from typing import Any

from hist_cache.cluster.facts import LostProcessError
from hist_cache.cluster.processes import Mailbox
from hist_cache.cluster.ray_cluster import BESIDE_COMMAND, answer, call, end_process, first_done, start_process
from hist_cache.errors import HistError

TAKE_S = 10.0  # messages that have not come by then are taken the next time


class Inbox:
    """Starts a mailbox, and takes what comes. One that dies is started again; couriers keep what is not taken."""

    def __init__(self) -> None:
        self.mailbox = start_process(Mailbox, where=BESIDE_COMMAND, restarts=-1)
        self._taking: Any = None

    def take(self, stopping: bool, seconds: float = TAKE_S) -> list[Any]:
        """Return the messages that have come since the last time, in their order.

        Args:
            stopping: Whether work shall stop, which those who post are told.
            seconds: How long to wait. What comes later is returned by the next call.
        """
        if self._taking is None:
            self._taking = call(self.mailbox, "take", stopping)
        if not first_done([self._taking], seconds):
            return []
        taken, self._taking = self._taking, None
        try:
            messages: list[Any] = answer(taken)
        except (HistError, LostProcessError):
            return []
        return messages

    def close(self) -> None:
        """End the mailbox."""
        end_process(self.mailbox)
