"""Work that takes no time, for tests of the cluster's executor; processes on the cluster import it."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from hist_cache.errors import HistError, WriteError


def own_bytes() -> int:
    """Memory of this process alone."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


class Context:
    """What a process has: the arrays that it received last, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ""
        self.arrays: dict[str, np.ndarray] = {}
        self.own_bytes = own_bytes()


def start(setup: Path) -> Context:
    """Refuse where another process has claimed the one place that `only_one` stands for."""
    if (setup / "only_one").exists():
        try:
            (setup / "claimed").mkdir()
        except FileExistsError:
            raise HistError("no weights here") from None
    return Context(setup)


def receive(context: Context, key: str, arrays: dict[str, np.ndarray]) -> None:
    context.key, context.arrays = key, arrays


def _wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.05)


def work(context: Context, task: tuple[str, int], report: Any) -> dict[str, Any]:
    kind, number = task
    folder = context.folder
    (folder / f"began-{number}-{os.getpid()}").touch()
    if kind == "talk":
        for i in range(5):
            report((number, i))
    elif kind == "sum":
        array = context.arrays["ones"]
        return {
            "sum": float(array.sum()),
            "key": context.key,
            "writable": bool(array.flags.writeable),
            "grown": own_bytes() - context.own_bytes,
            "pid": os.getpid(),
        }
    elif kind == "fail":
        raise HistError(f"task {number} cannot be done")
    elif kind == "break":
        raise ValueError("nobody expects this")
    elif kind == "no disk":
        raise WriteError(folder, "the disk is full", "make room")
    elif kind == "exit":
        os._exit(7)
    elif kind == "wait":
        _wait_for(folder / "go")
    elif kind == "count":
        for i in itertools.count():
            report((number, i))
            time.sleep(0.05)
    elif kind == "epochs":
        try:
            while True:
                time.sleep(0.05)
        except KeyboardInterrupt:
            (folder / f"checkpoint-{number}").touch()
            raise
    return {"number": number, "pid": os.getpid()}


def be_one_of_a_gang(dies: int) -> int:
    """Add up the ranks, as `train.distributed` knows them; the process of the given rank dies."""
    import torch

    from train import distributed

    distributed.init()
    try:
        if distributed.rank() == dies:
            os._exit(9)
        total = distributed.all_reduce_sum(torch.tensor([1.0 + distributed.rank()]))
        print(f"{distributed.world_size()} processes, sum {total.item():g}")
        print("the end", end="")
        return int(os.environ["LOCAL_RANK"]) + 3
    finally:
        distributed.destroy()


def cannot_write() -> int:
    """Fail as one does whose disk is full."""
    raise WriteError("/there", "full", "make room")
