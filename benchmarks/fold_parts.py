"""hist-train in this process, with a clock at what surrounds the steps: prints seconds of each part as a line of JSON.

    python benchmarks/fold_parts.py --dataset demo --jobs 1

A function that is called by another one with a clock counts for itself alone. `bench_grid.py` calls this.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Any

import psutil

PARTS = {
    "steps": ("train.fit.loop:train_epoch",),
    "validation": ("train.fit.loop:validation_scores", "train.fit.loop:validation_loss"),
    "reading": ("train.experiments.announcements:open_workspace", "train.workspace:Workspace.data"),
    "panels": ("train.workspace:Workspace.panel", "train.workspace:Workspace.keep_panels"),
    "controls": ("train.experiments.controls:Controls.metrics", "train.experiments.fold:permuted"),
    "test": ("train.experiments.fold:predict_embedded", "train.experiments.fold:test_metrics"),
    "figures": (
        "train.experiments.fold:plot_training",
        "train.experiments.fold:plot_maps",
        "train.experiments.fold:plot_geometry",
        "train.experiments.fold:FoldRunner._project",
    ),
    "writing": (
        "train.experiments.fold:write_start",
        "train.experiments.fold:prediction_table",
        "train.experiments.fold:write_h5ad",
        "train.experiments.fold:write_json",
        "train.experiments.fold:write_history",
        "train.experiments.fold:save_model",
        "train.fit.checkpoints:Checkpoint.save",
    ),
    "report": ("train.cli:print_results",),
    "start-up": (
        "train.experiments.fold:check_model_fits",
        "train.fit.loop:make_optimizer",
    ),  # they import parts of torch
}


class Clock:
    """Seconds of each part, without those of parts within it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._within: list[float] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts for a part."""

        @functools.wraps(function)
        def run(*args: Any, **more: Any) -> Any:
            started = time.perf_counter()
            self._within.append(0.0)
            try:
                return function(*args, **more)
            finally:
                whole = time.perf_counter() - started
                self.seconds[part] += whole - self._within.pop()
                if self._within:
                    self._within[-1] += whole

        return run


def main() -> None:
    """Run hist-train and print where its time went."""
    from hist_cache.commands import claim_packages

    claim_packages()
    clock = Clock()
    for part, functions in PARTS.items():
        for function in functions:
            module, _, name = function.partition(":")
            owner: Any = import_module(module)
            *path, last = name.split(".")
            for step in path:
                owner = getattr(owner, step)
            setattr(owner, last, clock.timed(part, getattr(owner, last)))
    started = time.time()
    code = import_module("train.cli").main(sys.argv[1:])
    ended = time.time()
    clock.seconds["start-up"] += started - psutil.Process().create_time()
    clock.seconds["other"] += ended - psutil.Process().create_time() - sum(clock.seconds.values())
    print("\n" + json.dumps(clock.seconds))
    sys.exit(code)


if __name__ == "__main__":
    main()
