"""Ray: clusters, and processes of ours on them. This is the only module that imports it, with `--engine ray` alone.

`executor` gives tasks to such processes, `gang` has several of them do one thing together.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from hist_cache.cluster.checks import (
    check_address,
    check_temp_dir,
    own_versions,
    somebody_answers,
    split_address,
    store_bytes,
)
from hist_cache.cluster.facts import LostProcessError, Node, ProcessPlace
from hist_cache.cluster.settings import own_sigterm, ray_environment, silent_stderr
from hist_cache.errors import HistError, InputError, kind_and_text, one_line
from hist_cache.memory import free_memory
from hist_cache.processes import cores
from hist_cache.scratch import scratch_folder

if TYPE_CHECKING:
    import numpy as np

HEAD_GONE_S = 40.0  # after 60 s without the head, Ray would end this process without a word that helps
OWN_HEAD_GONE_S = 2.0  # after 20 s where it is of this machine alone, see `settings`
PROBE_S = 2.0  # a machine that is there answers within that time
SHARED_MEMORY = Path("/dev/shm")
BESIDE_COMMAND = "here"
HOME = Path(__file__).resolve().parents[2]  # of the source, for processes on machines where it is not installed


@dataclass
class Cluster:
    """A cluster that this process is connected to.

    Attributes:
        address: Of its head.
        own: Whether it was started here for this command alone.
        command: The line by which the user goes on, where that is known.
    """

    address: str
    own: bool = False
    command: str = ""
    _checked: float = field(default_factory=time.monotonic)
    _silent_since: float | None = None

    @property
    def patience_s(self) -> float:
        """How long the head may be silent: one of others may be moved to another machine, and come back."""
        return OWN_HEAD_GONE_S if self.own else HEAD_GONE_S

    def nodes(self) -> list[Node]:
        """The machines that are there now."""
        import ray

        with _plain_errors():
            rows: list[dict[str, Any]] = [row for row in ray.nodes() if row["Alive"]]
        return [
            Node(
                row["NodeID"],
                row["NodeManagerHostname"],
                (row["NodeManagerAddress"], int(row["NodeManagerPort"])),
                row["Resources"].get("CPU", 0.0),
                row["Resources"].get("GPU", 0.0),
                int(row["Resources"].get("object_store_memory", 0)),
            )
            for row in rows
        ]

    def lives(self, key: str) -> bool:
        """Whether a machine is there. Ray takes 10 to 15 s to notice that one is not, so it is asked itself."""
        return any(node.key == key and somebody_answers(*node.address, PROBE_S) for node in self.nodes())

    def describe(self) -> str:
        """How large it is, as in "3 machines, 8 GPUs"."""
        nodes = [node for node in self.nodes() if node.cpus or node.gpus]
        gpus, cpus = int(sum(n.gpus for n in nodes)), int(sum(n.cpus for n in nodes))
        what = f"{gpus} GPU{'s' * (gpus != 1)}" if gpus else f"{cpus} core{'s' * (cpus != 1)}"
        return f"{len(nodes)} machine{'s' * (len(nodes) != 1)}, {what}"

    def check_head(self) -> None:
        """Check now and then that the head is there.

        Raises:
            HistError: It has been silent for too long.
        """
        now = time.monotonic()
        if now - self._checked < self.patience_s / 9:
            return
        self._checked = now
        if somebody_answers(*split_address(self.address), min(PROBE_S, self.patience_s / 4)):
            self._silent_since = None
            return
        self._silent_since = self._silent_since or now
        if now - self._silent_since > self.patience_s:
            raise HistError(
                f"the head of the cluster at {self.address} has been silent for {self.patience_s:.0f} s; what is "
                f"finished is kept: start a cluster again, then {self.command or 'the same command'} does the rest"
            )

    @property
    def head_is_silent(self) -> bool:
        """Whether the head did not answer the last time."""
        return self._silent_since is not None


@contextmanager
def open_cluster(address: str | None = None, insecure: bool = False, command: str = "") -> Iterator[Cluster]:
    """Connect to a cluster, or start one on this machine, which ends with the block.

    Args:
        address: HOST:PORT of the cluster's head. None starts Ray here, on loopback alone, with a new token.
        insecure: Connect without a token to another machine too.
        command: The line by which the user goes on when the head is lost.

    Raises:
        InputError: The address is none, or an unsafe one.
        HistError: Nobody answers there, the token is wrong, or Ray cannot be started.
    """
    if address is not None:
        check_address(address, insecure)
    with scratch_folder("hist-ray-") as folder, ray_environment(address):
        import ray

        if ray.is_initialized():
            raise HistError("Ray is in use in this process already; end that with ray.shutdown() first")
        paths = ray.job_config.JobConfig(_py_driver_sys_path=[str(HOME)])  # where the source is used as it is
        shared: dict[str, Any] = {"job_config": paths, "log_to_driver": False, "configure_logging": False}
        if address is None:
            check_temp_dir(folder)
            free_shm = psutil.disk_usage(str(SHARED_MEMORY)).free if SHARED_MEMORY.is_dir() else float("inf")
            shared |= {
                "num_cpus": len(cores()),
                "object_store_memory": store_bytes(free_memory(), free_shm),
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",  # also where Ray was imported before the variables were set
                "_temp_dir": str(folder),
            }
        _forget_token()
        try:
            with _plain_errors(f"--address {address}" if address else "Ray could not be started"), silent_stderr():
                with own_sigterm():
                    started = ray.init(address or "local", **shared)
                cluster = Cluster(started.address_info["gcs_address"], address is None, command)
                cluster.nodes()
            yield cluster
        finally:
            with suppress(Exception):  # a head that is gone cannot be told
                ray.shutdown()
            _forget_token()


def _forget_token() -> None:
    """Have Ray read the token again, which it keeps from an earlier connection."""
    with suppress(ImportError, AttributeError):  # names of its own, which another version may lack
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # of compiled code

        AuthenticationTokenLoader.instance().reset_cache()
        Config.initialize("")  # the mode likewise


@contextmanager
def _plain_errors(what: str = "Ray") -> Iterator[None]:
    """Have all that Ray raises be an error of one line."""
    try:
        yield
    except HistError:
        raise
    except Exception as error:
        causes = ""
        cause: BaseException | None = error
        while cause is not None:
            causes, cause = f"{causes} {type(cause).__name__} {cause}", cause.__cause__ or cause.__context__
        if "uthenticat" in causes:
            raise InputError(
                f"{what}: the token is wrong, or there is none; set RAY_AUTH_TOKEN to the cluster's"
            ) from error
        raise HistError(f"{what}: {kind_and_text(error)}") from error


def whereabouts() -> ProcessPlace:
    """Where this process runs, which Ray has started."""
    import ray

    context = ray.get_runtime_context()
    gpus = tuple(str(gpu) for gpu in context.get_accelerator_ids().get("GPU", ()))
    host, address = socket.gethostname(), ray.util.get_node_ip_address()
    return ProcessPlace(context.get_node_id(), host, address, os.getpid(), gpus, own_versions())


def start_process(
    kind: type,
    *arguments: Any,
    cpus: float = 0,
    gpus: float = 0,
    threads: int = 1,
    where: Any = None,
    restarts: int = 0,
) -> Any:
    """Start a process on the cluster as soon as there is room; returns what `call` takes.

    Args:
        kind: The class that it holds one of.
        arguments: Of that class.
        cpus: Cores that it takes.
        gpus: GPUs that it takes, and alone sees.
        threads: How many calls are answered at once; a single one is in the main thread.
        where: A place of `reserve`, or `BESIDE_COMMAND`; None for anywhere.
        restarts: How often Ray starts it again when it has died; -1 for always.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if where == BESIDE_COMMAND:
        where = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": restarts, "max_concurrency": threads}
    actor: Any = ray.remote(kind).options(**options, scheduling_strategy=where)
    with _plain_errors():
        return actor.remote(*arguments)


def call(process: Any, method: str, *arguments: Any) -> Any:
    """Call a method of a process; returns what `answer` takes."""
    return getattr(process, method).remote(*arguments)


def first_done(calls: Sequence[Any], seconds: float) -> list[Any]:
    """The calls that are answered, as soon as one is or the time is over."""
    import ray

    if not calls:
        time.sleep(seconds)
        return []
    with _plain_errors():
        done, _ = ray.wait(list(calls), num_returns=1, timeout=seconds)
        if done:
            done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
    return list(done)


def answer(waited: Any, seconds: float | None = None) -> Any:
    """What a call returns, or an array that was shared.

    Raises:
        LostProcessError: The process is gone.
        HistError: Anything else that Ray raises.
    """
    import ray

    try:
        return ray.get(waited, timeout=seconds)
    except ray.exceptions.RayTaskError as error:
        raise HistError(one_line(error.cause or error)) from error
    except ray.exceptions.RayActorError as error:
        ip = re.search(r"\bip=([^,)\s]+)", str(error)) if error.actor_init_failed else None
        where = ip.group(1) if ip else None
        raise LostProcessError(str(error), error.actor_init_failed, error.preempted, where) from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise LostProcessError(str(error)) from error
    except ray.exceptions.RayError as error:
        raise HistError(f"Ray: {kind_and_text(error)}") from error


def share_array(array: np.ndarray) -> Any:
    """Put an array where all processes of a machine map it; returns what `answer` takes there.

    Raises:
        HistError: There is no room.
    """
    import ray

    with _plain_errors("arrays cannot be shared"):
        return ray.put(array)


def end_process(process: Any) -> None:
    """End a process at once."""
    import ray

    with suppress(Exception):  # it is gone, or the head is
        ray.kill(process)


def reserve(processes: int, cpus: float, gpus: float) -> tuple[Any, Any]:
    """Ask for room for several processes, all at once or not at all.

    Returns:
        What `place_of` and `release` take, and what `first_done` waits for: that there is room.
    """
    import ray

    with _plain_errors():
        room = {name: number for name, number in (("CPU", cpus), ("GPU", gpus)) if number}
        group = ray.util.placement_group([room] * processes, strategy="PACK")
        return group, group.ready()


def place_of(group: Any, number: int) -> Any:
    """Where `start_process` starts one of the processes that there is room for."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)


def release(group: Any) -> None:
    """Give the room back; processes that are in it end."""
    import ray

    with suppress(Exception):  # the head is gone
        ray.util.remove_placement_group(group)
