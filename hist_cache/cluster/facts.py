"""What is known of a cluster's machines and processes, in plain data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from hist_cache.errors import HistError

OWN_VARIABLES = "HIST_"  # how variables of this project begin


class LostProcessError(Exception):
    """A process of ours on the cluster has died, or cannot be reached any more.

    Attributes:
        never_began: It could not be set up: this project or one of its packages cannot be imported there.
        preempted: Its machine was taken away.
        address: Of the machine, where that is known of a process that never began.
    """

    def __init__(
        self, text: str, never_began: bool = False, preempted: bool = False, address: str | None = None
    ) -> None:
        super().__init__(text)
        self.never_began, self.preempted, self.address = never_began, preempted, address


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, or what is started as one.

    Attributes:
        key: Its name in Ray.
        host: Its name.
        address: Host and port where its own process of Ray listens.
        cpus: Cores that it offers.
        gpus: GPUs that it offers.
        store: Bytes of its object store.
    """

    key: str
    host: str
    address: tuple[str, int]
    cpus: float
    gpus: float
    store: int


def why_never_began(error: LostProcessError, nodes: list[Node]) -> str:
    """Say where a process could not be set up, if that is known, and why.

    Args:
        error: By which it was lost.
        nodes: The machines of the cluster.
    """
    host = next((node.host for node in nodes if node.address[0] == error.address), error.address)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{host or 'a machine of the cluster'}: hist-cache cannot be started there ({lines[-1] if lines else '?'})"


@dataclass(frozen=True)
class ProcessPlace:
    """Where a process runs, and with what."""

    node: str
    host: str
    address: str
    pid: int
    gpus: tuple[str, ...]
    versions: dict[str, str]


@dataclass(frozen=True)
class CommandPlace:
    """Where a command was started: its processes on other machines understand paths as it does.

    Attributes:
        folder: The working folder.
        variables: The environment variables of this project.
    """

    folder: Path
    variables: dict[str, str]

    def enter(self) -> None:
        """Make this process's folder and variables the command's.

        Raises:
            HistError: The folder is not there.
        """
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise HistError(
                f"{self.folder}: {error.strerror}; all machines must see the folder that the command is started in"
            ) from error
        for name in [name for name in os.environ if name.startswith(OWN_VARIABLES)]:
            del os.environ[name]
        os.environ.update(self.variables)


def command_place() -> CommandPlace:
    """Where this command was started."""
    variables = {name: value for name, value in os.environ.items() if name.startswith(OWN_VARIABLES)}
    return CommandPlace(Path.cwd(), variables)
