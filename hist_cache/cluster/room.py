"""What a worker takes of a machine, and how many the machines of a cluster have room for."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from hist_cache.cluster.facts import Node
from hist_cache.cluster.ray_cluster import Cluster
from hist_cache.errors import InputError
from hist_cache.executor import TICK_S

log = logging.getLogger(__name__)

SAID_S = 5.0  # a machine that is not there by then is said to be waited for


@dataclass(frozen=True)
class Size:
    """What a worker takes.

    Attributes:
        cpus: Cores, which is also how many threads it computes with.
        gpus: GPUs; where it takes any, its cores are not counted.
    """

    cpus: int = 1
    gpus: int = 0

    @property
    def counted_cpus(self) -> int:
        """Cores that are taken from what a machine offers."""
        return 0 if self.gpus else self.cpus

    def places(self, nodes: list[Node]) -> int:
        """How many workers the machines have room for, other commands aside."""
        return int(sum(node.gpus // self.gpus if self.gpus else node.cpus // self.cpus for node in nodes))

    def __str__(self) -> str:
        number, what = (self.gpus, "GPU") if self.gpus else (self.cpus, "core")
        return f"{number} {what}{'s' * (number != 1)}"


def check_workers_room(cluster: Cluster, size: Size, at_once: int = 1) -> None:
    """Check that there can ever be room for so many workers at once; a cluster that was joined may still grow.

    Raises:
        InputError: Ray of this machine alone is too small.
    """
    there = size.places(cluster.nodes())
    if cluster.own and there < at_once:
        who = f"a worker takes {size}" if at_once == 1 else f"{at_once} processes on one batch take {size} each"
        raise InputError(
            f"{who}, and Ray on this machine has room for {there} ({cluster.describe()}); give less by --workers, "
            "--cpus-per-worker or --gpus-per-worker, or the --address of a larger cluster"
        )


def decide(cluster: Cluster, workers: int | None, cpus: int, gpus: int | None) -> tuple[int, Size]:
    """Decide how many workers there are and what each takes, as soon as the cluster has machines to decide by.

    Args:
        cluster: It.
        workers: How many were asked for; None for as many as there is room for.
        cpus: Cores of each.
        gpus: GPUs of each; None for one where the cluster has any.

    Raises:
        InputError: Ray of this machine alone has no room for one.
        HistError: The cluster's head is gone.
    """
    since, said = time.monotonic(), False
    while True:
        nodes = cluster.nodes()
        size = Size(cpus, int(any(node.gpus for node in nodes)) if gpus is None else gpus)
        check_workers_room(cluster, size)
        there = size.places(nodes)
        if there or (workers is not None and gpus is not None):
            return workers or there, size
        if not said and time.monotonic() - since > SAID_S:
            log.info(
                f"waiting for a machine with {size} (there: {cluster.describe()}); where machines are added on demand, "
                "give --workers and --gpus-per-worker"
            )
            said = True
        time.sleep(TICK_S)
        cluster.check_head()
