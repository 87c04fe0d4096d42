"""What is known of a cluster's machines and processes, in plain data."""

from __future__ import annotations

from dataclasses import dataclass


class LostProcessError(Exception):
    """A process of ours on the cluster has died, or cannot be reached any more.

    Attributes:
        never_began: It could not be set up: this project or one of its packages cannot be imported there.
        preempted: Its machine was taken away.
    """

    def __init__(self, text: str, never_began: bool = False, preempted: bool = False) -> None:
        super().__init__(text)
        self.never_began, self.preempted = never_began, preempted


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


@dataclass(frozen=True)
class ProcessPlace:
    """Where a process runs, and with what."""

    node: str
    host: str
    address: str
    pid: int
    gpus: tuple[str, ...]
    versions: dict[str, str]
