"""What the command knows of its workers on a cluster, and the arrays that it shares with them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from hist_cache.cluster.checks import check_store
from hist_cache.cluster.facts import ProcessPlace
from hist_cache.cluster.ray_cluster import Cluster, share_array
from hist_cache.executor import Shared
from hist_cache.task_queue import Handed

if TYPE_CHECKING:  # `--help` does without numpy
    import numpy as np

_T = TypeVar("_T")

DEATH_SETTLES_S = 1.0  # a machine that goes down may lose its processes so long before it stops to answer


@dataclass(eq=False)
class Seat(Generic[_T]):
    """A worker: the process that is it now, and what that is at.

    Attributes:
        opening: The call that it must answer before it gets tasks: where it is, then that it is ready.
        running: Its tasks, with the numbers of their giving, by the calls that do them.
        lost: Processes that died while they started, one after the other.
        trying: Whether its process is to show that one can be set up, after others that could not.
    """

    number: int
    process: Any
    opening: Any
    since: float = field(default_factory=time.monotonic)
    place: ProcessPlace | None = None
    running: dict[Any, tuple[int, Handed[_T]]] = field(default_factory=dict)
    refused: bool = False
    lost: int = 0
    trying: bool = False

    @property
    def host(self) -> str:
        """The machine, as messages name it."""
        return self.place.host if self.place else "a machine of the cluster"

    @property
    def waits_for_room(self) -> bool:
        """Whether its process has not said yet where it is."""
        return self.place is None and self.opening is not None and not self.refused

    @property
    def ready(self) -> bool:
        """Whether it may have tasks."""
        return self.place is not None and self.opening is None and not self.refused


@dataclass(eq=False)
class Death(Generic[_T]):
    """A process that has died, until it is known whether its machine has.

    Attributes:
        seat: Whose process it was.
        place: Where it was; None where it had not said.
        tasks: Those that it had begun.
        opening: Whether it had not got ready.
        preempted: Whether its machine was taken away.
        due: When it is known.
    """

    seat: Seat[_T]
    place: ProcessPlace | None
    tasks: list[Handed[_T]]
    opening: bool
    preempted: bool
    due: float = field(default_factory=lambda: time.monotonic() + DEATH_SETTLES_S)


class SharedArrays:
    """The arrays that tasks read, put where each machine holds them once."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._arrays: dict[str, tuple[int, dict[str, Any]]] = {}  # by key: bytes, and what was shared by name
        self._made: dict[str, dict[str, np.ndarray]] = {}  # the arrays that there was no room for, by key

    def provide(self, shared: Shared, needed: set[str]) -> dict[str, Any] | None:
        """Share the arrays unless they are; those of other keys go as far as room is wanted, except the needed ones.

        Returns:
            Them by name; None where there is room only when the needed ones have gone.

        Raises:
            HistError: There is no room at all.
        """
        if shared.key not in self._arrays:
            made = self._made.get(shared.key) or shared.make()
            n_bytes = sum(array.nbytes for array in made.values())
            nodes = self._cluster.nodes()
            for node in nodes:
                check_store(n_bytes, node.store, node.host)
            room = min((node.store for node in nodes), default=n_bytes)
            for key in [key for key in self._arrays if key not in needed]:  # the oldest first
                if n_bytes + self._held <= room:
                    break
                del self._arrays[key]
            if n_bytes + self._held > room:
                self._made = {shared.key: made}
                return None
            self._made = {}
            self._arrays[shared.key] = n_bytes, {name: share_array(array) for name, array in made.items()}
        return self._arrays[shared.key][1]

    @property
    def _held(self) -> int:
        """Bytes that are shared now."""
        return sum(n_bytes for n_bytes, _ in self._arrays.values())
