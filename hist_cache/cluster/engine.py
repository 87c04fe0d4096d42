"""The engine `ray` of the commands: workers on a cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hist_cache.cluster.executor import RayExecutor
from hist_cache.cluster.gang import run_cluster_gang
from hist_cache.cluster.ray_cluster import Cluster, open_cluster
from hist_cache.cluster.room import Size, decide

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


class RayEngine:
    """Workers are processes of a cluster; see `hist_cache.engine.Engine`.

    Args:
        cluster: It.
        workers: How many there are at most.
        size: What each takes.
    """

    shares_files = False

    def __init__(self, cluster: Cluster, workers: int, size: Size) -> None:
        self._cluster, self._workers, self._size = cluster, workers, size

    def workers(self, tasks: int, local: int) -> int:
        """As many as were asked for or there is room for, and no more than tasks."""
        return max(1, min(tasks, self._workers))

    def describe(self, workers: int, device: torch.device) -> str:
        """The cluster, and how many workers share it."""
        return f"Ray: {self._cluster.describe()}, {workers} at once"

    def executor(self, workers: int, device: torch.device) -> RayExecutor:
        """Processes of the cluster."""
        return RayExecutor(self._cluster, workers, self._size.cpus, self._size.gpus)

    def run_gang(self, world_size: int, function: Callable[..., int], arguments: tuple[Any, ...]) -> int:
        """Run a function in several processes at once; see `hist_cache.gang.RunGang`."""
        return run_cluster_gang(self._cluster, world_size, function, arguments, self._size.cpus, self._size.gpus)


@contextmanager
def open_ray(
    address: str | None,
    workers: int | None,
    cpus_per_worker: int,
    gpus_per_worker: int | None,
    insecure: bool,
    command: str,
) -> Iterator[RayEngine]:
    """Join a cluster, or start one here, and say how large it is; the arguments are the options of the same names.

    Raises:
        HistError: As `open_cluster`, and as `decide`.
    """
    with open_cluster(address, insecure, command) as cluster:
        log.info(f"Ray at {cluster.address}: {cluster.describe()}")
        yield RayEngine(cluster, *decide(cluster, workers, cpus_per_worker, gpus_per_worker))
