"""Which executor does a command's work: this machine's processes (`local`), or those of a Ray cluster (`ray`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from hist_cache.devices import device_name, visible_gpus
from hist_cache.errors import InputError
from hist_cache.executor import Executor
from hist_cache.extras import require
from hist_cache.options import CommandOptions, flag

if TYPE_CHECKING:  # `--help` does without torch
    import torch

EngineName = Literal["local", "ray"]
ENGINE_HELP = "who does the work: processes of this machine, or a Ray cluster (pip install hist-cache[ray])"
ADDRESS_HELP = "of the Ray cluster (default: $RAY_ADDRESS, or one that is started on this machine)"
WORKERS_HELP = "workers of the Ray cluster (default: one a GPU, or one each --cpus-per-worker)"
CPUS_HELP = "cores of a worker of the Ray cluster"
GPUS_HELP = "GPUs of a worker of the Ray cluster (default: 1 where the cluster has any; none with --device cpu)"
INSECURE_HELP = "join a Ray cluster beyond this machine without a token: whoever reaches its ports can run code as you"
TRIES = 3
RAY_ONLY = (
    "address",
    "workers",
    "cpus_per_worker",
    "gpus_per_worker",
    "insecure",
)  # options that only `--engine ray` reads


class EngineOptions(Protocol):
    """What a command's options say of its engine."""

    @property
    def engine(self) -> EngineName:
        """Its name."""

    @property
    def address(self) -> str | None:
        """HOST:PORT of a Ray cluster."""

    @property
    def workers(self) -> int | None:
        """Workers of a Ray cluster."""

    @property
    def cpus_per_worker(self) -> int:
        """Cores of each."""

    @property
    def gpus_per_worker(self) -> int | None:
        """GPUs of each; None for one where the cluster has any."""

    @property
    def device(self) -> str:
        """What is computed on."""

    @property
    def command(self) -> str:
        """The command line."""

    @property
    def insecure(self) -> bool:
        """Whether a cluster beyond this machine is joined without a token."""


class Engine(Protocol):
    """Where workers come from."""

    shares_files: bool
    """Whether all workers have this machine's temporary files."""

    def workers(self, tasks: int, local: int) -> int:
        """Return how many workers do so many tasks at once.

        Args:
            tasks: How many there are.
            local: How many workers there would be on this machine.
        """

    def describe(self, workers: int, device: torch.device) -> str:
        """Say what so many workers compute on; the arguments are those of `executor`."""

    def run_gang(self, world_size: int, function: Callable[..., int], arguments: tuple[Any, ...]) -> int:
        """Run a function in several processes at once; see `hist_cache.gang.RunGang`."""

    def executor(self, workers: int, device: torch.device) -> Executor:
        """Return what runs tasks.

        Args:
            workers: How many workers.
            device: Of this process; without one of its own, each worker takes a GPU if there are any.
        """


class LocalEngine:
    """Workers are processes of this machine; each sees one of its GPUs."""

    shares_files = True

    def workers(self, tasks: int, local: int) -> int:
        """As many as there would be on this machine, and no more than tasks."""
        return max(1, min(tasks, local))

    def describe(self, workers: int, device: torch.device) -> str:
        """The device, and how many workers share what there is of it."""
        import torch

        gpus = min(workers, len(visible_gpus(device)))
        cores = [f"{torch.get_num_threads()} cores"] if device.type == "cpu" else []
        name = device_name(device) + (f" and {gpus - 1} more GPUs" if gpus > 1 else "")
        return ", ".join([name, *cores, f"{workers} at once"])

    def run_gang(self, world_size: int, function: Callable[..., int], arguments: tuple[Any, ...]) -> int:
        """Run it in processes of this machine."""
        from hist_cache.gang import run_local_gang

        return run_local_gang(world_size, function, arguments)

    def executor(self, workers: int, device: torch.device) -> Executor:
        """Processes, or this process where it is one."""
        from hist_cache.executor import SerialExecutor
        from hist_cache.processes import ProcessExecutor

        return ProcessExecutor(workers, visible_gpus(device)) if workers > 1 else SerialExecutor()


@dataclass(frozen=True)
class Workers:
    """Who does the tasks of a command.

    Attributes:
        engine: Where workers come from.
        count: How many there are at once.
        device: Of this process.
        asked: The value of `--device`, by which each worker chooses its own.
    """

    engine: Engine
    count: int
    device: torch.device
    asked: str

    @property
    def are_here(self) -> bool:
        """Whether this process does everything itself."""
        return self.count == 1 and self.engine.shares_files

    @property
    def tries(self) -> int:
        """How many workers a task may cost: on other machines they may be lost through no fault of the task."""
        return 1 if self.engine.shares_files else TRIES

    def __str__(self) -> str:
        return self.engine.describe(self.count, self.device)

    def executor(self) -> Executor:
        """Return what runs tasks."""
        return self.engine.executor(self.count, self.device)


@contextmanager
def open_engine(options: EngineOptions) -> Iterator[Engine]:
    """Start or join what does the work; what was started is ended afterwards.

    Raises:
        InputError: Options are given that this engine does not read, or the extra is not installed.
        HistError: The cluster does not answer, or refuses.
    """
    check_engine(options)
    if options.engine == "local":
        yield LocalEngine()
        return
    from hist_cache.cluster.engine import open_ray

    address = options.address or os.environ.get("RAY_ADDRESS") or None
    gpus = 0 if options.device == "cpu" else options.gpus_per_worker
    size = options.cpus_per_worker, gpus
    with open_ray(address, options.workers, *size, options.insecure, options.command) as engine:
        yield engine


def check_engine(options: EngineOptions) -> None:
    """`InputError` for options that the engine does not read, or where its extra is not installed."""
    if options.engine == "ray":
        require("ray", "ray", "--engine ray")
        if options.device == "cpu" and options.gpus_per_worker is not None:
            raise InputError(f"--gpus-per-worker {options.gpus_per_worker}: workers take no GPU with --device cpu")
        return
    assert isinstance(options, CommandOptions)
    for name in RAY_ONLY:
        if name in options.given:
            instead = "; on this machine --jobs N gives the number" if name == "workers" else ""
            raise InputError(f"{flag(name)}: is for --engine ray{instead}")
