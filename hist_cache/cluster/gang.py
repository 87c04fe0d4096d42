"""A gang on a cluster: several processes that do one thing together start all at once, or not at all."""

from __future__ import annotations

import logging
import pickle
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from hist_cache.cluster.checks import own_versions, version_difference
from hist_cache.cluster.facts import LostProcessError, ProcessPlace, command_place, why_never_began
from hist_cache.cluster.inbox import Inbox
from hist_cache.cluster.processes import RankProcess
from hist_cache.cluster.ray_cluster import (
    Cluster,
    answer,
    call,
    end_process,
    first_done,
    place_of,
    release,
    reserve,
    start_process,
)
from hist_cache.cluster.room import Size, check_workers_room
from hist_cache.errors import HistError
from hist_cache.executor import TICK_S
from hist_cache.gang import SETTLE_S, STOP_S, LostRankError
from hist_cache.processes import WorkerTraceback
from hist_cache.stopping import GracefulStop

log = logging.getLogger(__name__)

ROOM_SAID_S = 10.0  # a gang that has no room by then is said to wait


def run_cluster_gang(
    cluster: Cluster,
    world_size: int,
    function: Callable[..., int],
    arguments: tuple[Any, ...] = (),
    cpus_per_process: int = 1,
    gpus_per_process: int = 0,
) -> int:
    """Run a function in several processes of a cluster; see `hist_cache.gang.RunGang`.

    What the first one prints is printed here. The function and its arguments can be imported and pickled.

    Raises:
        LostRankError: A process died; the others were ended.
        InputError: Ray of this machine alone has no room for all.
        HistError: One raised it, or has other versions, or cannot be set up, or the cluster's head is gone.
    """
    size = Size(cpus_per_process, gpus_per_process)
    check_workers_room(cluster, size, world_size)
    with GracefulStop(f"stopping {world_size} processes") as stop:
        gang = _ClusterGang(cluster, world_size, size, pickle.dumps((function, arguments)), stop)
        try:
            gang.find_room()
            gang.start()
            gang.wait()
        finally:
            gang.end()
    return gang.result()


class _ClusterGang:
    def __init__(self, cluster: Cluster, world_size: int, size: Size, pickled: bytes, stop: GracefulStop) -> None:
        self._cluster, self._world_size, self._size, self._pickled = cluster, world_size, size, pickled
        self._stop = stop
        self._room: Any = None
        self._inbox: Inbox | None = None
        self._processes: list[Any] = []
        self._places: list[ProcessPlace] = []
        self._outcomes: dict[int, tuple[str, Any]] = {}  # by rank

    def find_room(self) -> None:
        """Wait until there is room for all."""
        self._room, ready = reserve(self._world_size, self._size.counted_cpus, self._size.gpus)
        since, said = time.monotonic(), False
        while not first_done([ready], TICK_S):
            self._check()
            if not said and time.monotonic() - since > ROOM_SAID_S:
                each, there = self._size, self._cluster.describe()
                log.info(f"{self._world_size} processes wait until there is room for all, {each} each (there: {there})")
                said = True

    def _check(self) -> None:
        """Raise where it is of no use to wait on."""
        self._cluster.check_head()
        if self._stop.requested:
            raise self._stop.interrupt()

    def _answers(self, calls: list[Any]) -> list[Any]:
        """What the calls return; the first that is lost ends the waiting."""
        found: dict[Any, Any] = {}
        while left := [waited for waited in calls if waited not in found]:
            for waited in first_done(left, TICK_S):
                found[waited] = answer(waited)
            self._check()
        return [found[waited] for waited in calls]

    def start(self) -> None:
        """Start the processes; those of one machine have ranks one after the other."""
        inbox = self._inbox = Inbox()
        options = {"cpus": self._size.counted_cpus, "gpus": self._size.gpus}
        started = [
            start_process(RankProcess, inbox.mailbox, command_place(), where=place_of(self._room, i), **options)
            for i in range(self._world_size)
        ]
        self._processes = started
        try:
            places: list[ProcessPlace] = self._answers([call(process, "hello") for process in started])
            for place in places:
                if (different := version_difference(own_versions(), place.versions)) is not None:
                    raise HistError(f"{place.host}: {different}")
            order = sorted(range(self._world_size), key=lambda i: (places[i].node, i))
            self._processes, self._places = [started[i] for i in order], [places[i] for i in order]
            [(address, port)] = self._answers([call(self._processes[0], "meet")])
        except LostProcessError as error:
            if error.never_began:  # nor will it the next time
                raise HistError(why_never_began(error, self._cluster.nodes())) from error
            raise LostRankError(f"a process of {self._world_size} on one batch died while it started") from error
        environments = gang_environments(self._places, address, port, self._size.cpus)
        self._calls = {
            call(process, "run", environment, self._pickled): rank
            for rank, (process, environment) in enumerate(zip(self._processes, environments, strict=True))
        }

    def wait(self) -> None:
        """Wait until all processes have ended, or one of them so that the others need not go on."""
        deadline = float("inf")
        while len(self._outcomes) < self._world_size and time.monotonic() < deadline:
            left = [waited for waited, rank in self._calls.items() if rank not in self._outcomes]
            done = first_done(left, TICK_S)
            self._print()
            for waited in done:
                rank = self._calls[waited]
                try:
                    self._outcomes[rank] = answer(waited)
                except LostProcessError:
                    which = f"process {rank + 1} of {self._world_size} on one batch"
                    self._outcomes[rank] = "lost", f"{which} died on {self._places[rank].host} (out of memory?)"
                kind = self._outcomes[rank][0]
                allowed = {"returned": float("inf"), "stopped": STOP_S, "unexpected": SETTLE_S}.get(kind, 0.0)
                deadline = min(deadline, time.monotonic() + allowed)
            self._cluster.check_head()
        self._print()  # what the last ones have said

    def _print(self) -> None:
        assert self._inbox is not None, "start comes first"
        for _, stream, line in self._inbox.take(self._stop.requested > 0):
            print(line, file=sys.stdout if stream == "out" else sys.stderr, flush=True)

    def end(self) -> None:
        """End the processes that are left, and give the room back."""
        if not self._cluster.head_is_silent:
            for process in self._processes:
                end_process(process)
            if self._inbox is not None:
                self._inbox.close()
            if self._room is not None:
                release(self._room)

    def result(self) -> int:
        """The largest exit code, or the error of the process that ended first of those that had one."""
        cut_short = self._stop.requested and len(self._outcomes) < self._world_size
        kinds: dict[str, Any] = {}
        for kind, content in self._outcomes.values():
            kinds.setdefault(kind, content)
        if "failed" in kinds:
            error: HistError = kinds["failed"]
            raise error
        if "stopped" in kinds or cut_short or (self._stop.requested and "lost" in kinds):
            raise self._stop.interrupt()
        if "lost" in kinds:
            raise LostRankError(kinds["lost"])
        if "unexpected" in kinds:
            problem, text = kinds["unexpected"]
            raise HistError(f"{problem}; --debug shows where it happened") from WorkerTraceback(text)
        return max(int(code) for _, code in self._outcomes.values())


def gang_environments(places: list[ProcessPlace], address: str, port: int, threads: int) -> list[dict[str, str]]:
    """The variables of each process, as torchrun sets them.

    Args:
        places: Of the processes by rank; those of one machine follow each other.
        address: Where the first one listens.
        port: The port there.
        threads: How many each computes with.
    """
    local, sizes = Counter[str](), Counter(place.node for place in places)
    gpus = {place.node: [gpu for other in places if other.node == place.node for gpu in other.gpus] for place in places}
    environments = []
    for rank, place in enumerate(places):
        own: dict[str, Any] = {"RANK": rank, "WORLD_SIZE": len(places), "LOCAL_RANK": local[place.node]}
        own |= {"LOCAL_WORLD_SIZE": sizes[place.node], "MASTER_ADDR": address, "MASTER_PORT": port}
        own |= {"TORCHELASTIC_USE_AGENT_STORE": True, "OMP_NUM_THREADS": threads}
        if gpus[place.node]:  # all of its machine's, of which LOCAL_RANK names its own
            own["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[place.node])
        local[place.node] += 1
        environments.append({name: str(value) for name, value in own.items()})
    return environments
