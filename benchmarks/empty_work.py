"""Work that takes no time, for `bench_engines.py`: workers on a cluster import it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import psutil

from hist_cache.executor import Report


def nothing(setup: None) -> None:
    """What workers need for empty tasks."""


def empty_task(context: None, task: int, report: Report) -> None:
    """Do nothing."""


def read_arrays(context: dict[str, Any], task: int, report: Report) -> tuple[int, float]:
    """Read all of the arrays; returns the process, and its own memory in bytes."""
    float(context["values"].sum(dtype=np.float64))
    time.sleep(1.0)  # so that the other worker takes a task too
    return psutil.Process().pid, float(psutil.Process().memory_full_info().uss)


def new_context(setup: None) -> dict[str, Any]:
    """Where a worker keeps the arrays."""
    return {}


def receive(context: dict[str, Any], key: str, arrays: dict[str, np.ndarray]) -> None:
    """Keep the arrays."""
    context |= arrays
