"""Machines of a Ray cluster, each with processes of its own, all on this one and on loopback."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import REPOSITORY

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="no Ray here (pip install 'hist-cache[ray]')")
STORE = 80 * 2**20
TOKEN = secrets.token_hex(32)
LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(REPOSITORY),
}


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it has started."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


class Machines:
    """A head without cores, and nodes of one core, each with processes of its own as on machines of their own."""

    def __init__(self, folder: Path) -> None:
        head = {"num_cpus": 0, "include_dashboard": False, "no_monitor": True, "temp_dir": str(folder)}
        self.head = self._start(True, **head)
        self.address: str = self.head.gcs_address
        self.nodes = [self.add(), self.add()]

    def _start(self, head: bool, **parameters: Any) -> Any:
        from ray._private.node import Node
        from ray._private.parameter import RayParams

        small = {"num_gpus": 0, "object_store_memory": STORE, "include_log_monitor": False}
        ports = {"min_worker_port": 0, "max_worker_port": 0, "node_manager_port": 0, "node_ip_address": "127.0.0.1"}
        return Node(RayParams(**small, **ports, **parameters), head=head, shutdown_at_exit=False, spawn_reaper=False)

    def add(self) -> Any:
        return self._start(False, gcs_address=self.address, num_cpus=1)

    def processes(self) -> list[psutil.Process]:
        """Those of all machines, with the workers that run there."""
        started = [info for node in (self.head, *self.nodes) for kind in node.all_processes.values() for info in kind]
        return [process for info in started for process in family(info.process.pid)]

    def close(self) -> None:
        processes = self.processes()
        end(processes)


def raylet(node: Any) -> int:
    """The process number of a machine's own process of Ray."""
    return int(node.all_processes["raylet"][0].process.pid)


@contextmanager
def variables(**values: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    end_of_wait = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end_of_wait
        time.sleep(0.1)


@contextmanager
def started_machines() -> Iterator[Machines]:
    """Start them, with the variables by which this process is allowed to use them."""
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        variables(**LOOPBACK),
    ):
        started = Machines(Path(folder))
        try:
            yield started
        finally:
            started.close()
