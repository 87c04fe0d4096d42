"""Compare who does the work: one worker, several processes of this machine, and as many on a Ray cluster.

    python benchmarks/bench_engines.py [--workers 2] [--only extraction,grid,tasks,memory]

Extraction and grid: the commands on the demo slides, in turns; medians. Of extraction the crops/s that the command
prints are compared, without its start; of a grid the seconds of the whole command. With GPUs each worker has its own,
and several over one say what a further GPU gains; on a CPU they share its cores.
Tasks: seconds until the first of many empty tasks is done, and milliseconds for each. Memory: how much more memory of
its own a worker has for arrays that it reads with others, as a share of them.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from bench_grid import HERE, command, in_turns, run_from
from empty_work import empty_task, new_context, nothing, read_arrays, receive
from results import add_json_option, add_results

from hist_cache.cluster.executor import RayExecutor
from hist_cache.cluster.ray_cluster import open_cluster
from hist_cache.executor import Events, Executor, Shared, Worker
from hist_cache.processes import ProcessExecutor

REPEATS = 3
TASKS = 300
ARRAY_MB = 108
RATE = re.compile(r"crops in .*: ([\d.,]+) crops/s")


def engines(workers: int) -> dict[str, list[str]]:
    """The ways of a command, by name, with their options."""
    return {
        "one worker": ["--jobs", "1"],
        f"{workers} processes": ["--jobs", str(workers)],
        f"{workers} on Ray": ["--engine", "ray", "--workers", str(workers)],
    }


def print_ratios(values: dict[str, float], unit: str, larger_is_better: bool) -> None:
    """Print each way's value, and how many times as fast it is as the first."""
    first = next(iter(values.values()))
    for name, value in values.items():
        ratio = value / first if larger_is_better else first / value
        print(f"  {name:14} {value:9.1f} {unit}   {ratio:5.2f} x as fast as one worker")
    ours, theirs = list(values.values())[1:]
    print(f"  with Ray over without: {theirs / ours if larger_is_better else ours / theirs:.2f}")


def extraction(root: Path, workers: int, repeats: int) -> dict[str, float]:
    """Crops/s of hist-extract on the demo slides, each way."""

    def rate(name: str, options: list[str]) -> Callable[[], float]:
        def measure() -> float:
            with tempfile.TemporaryDirectory() as cache:
                argv = ["--dataset", "demo", "--data-root", str(root / "slides"), "--cache", cache, *options]
                _, text = run_from(HERE, command("hist-extract"), *argv)
            found = RATE.search(text)
            assert found, text
            return float(found[1].replace(",", ""))

        return measure

    values = in_turns({name: rate(name, options) for name, options in engines(workers).items()}, repeats)
    print(f"extraction of the demo slides, medians of {repeats}, in turns")
    print_ratios(values, "crops/s", larger_is_better=True)
    return values


def grid(root: Path, workers: int, repeats: int) -> dict[str, float]:
    """Seconds of a grid of folds, each way."""
    cache = ["--dataset", "demo", "--cache", str(root / "cache")]
    run_from(HERE, command("hist-extract"), *cache, "--data-root", str(root / "slides"))

    def seconds(options: list[str]) -> Callable[[], float]:
        def measure() -> float:
            with tempfile.TemporaryDirectory() as runs:
                fixed = ["--ablation", "full,no_hea,clip", "--folds", "2", "--epochs", "30", "--runs", runs]
                return run_from(HERE, command("hist-train"), *cache, *fixed, *options)[0]

        return measure

    values = in_turns({name: seconds(options) for name, options in engines(workers).items()}, repeats)
    print(f"a grid of six folds, start-up included, medians of {repeats}, in turns")
    print_ratios(values, "s", larger_is_better=False)
    return values


@contextmanager
def executors(workers: int) -> Iterator[dict[str, Executor]]:
    """Processes of this machine, and of a cluster on it."""
    with open_cluster() as cluster:
        yield {"processes": ProcessExecutor(workers), "Ray": RayExecutor(cluster, workers)}


def tasks(workers: int) -> dict[str, float]:
    """Start and cost of empty tasks."""
    found = {}
    with executors(workers) as ways:
        for name, executor in ways.items():
            done: list[float] = []
            began = time.perf_counter()
            events: Events[int, None] = Events(on_result=lambda task, _, done=done: done.append(time.perf_counter()))
            failures = executor.run(range(TASKS), Worker(nothing, empty_task, None), events)
            assert not failures, failures[0].error
            start, each = done[0] - began, 1000 * statistics.median(np.diff(done))
            print(f"{TASKS} empty tasks, {workers} {name}: the first after {start:.1f} s, then {each:.1f} ms each")
            found |= {f"{name}_start_s": start, f"{name}_task_ms": each}
    return found


def memory(workers: int) -> dict[str, float]:
    """What reading shared arrays adds to a worker's own memory."""
    found = {}
    with executors(workers) as ways:
        for name, executor in ways.items():
            uss = {}
            for megabytes in (1, ARRAY_MB):
                array = np.ones(megabytes * 10**6 // 4, dtype=np.float32)
                shared = Shared(f"of{megabytes}", lambda array=array: {"values": array})
                own: dict[int, float] = {}
                events: Events[int, tuple[int, float]] = Events(
                    on_result=lambda task, r, own=own: own.update([r]), shared=lambda task, shared=shared: shared
                )
                assert not executor.run(range(2 * workers), Worker(new_context, read_arrays, None, receive), events)
                uss[megabytes] = statistics.mean(own.values())
            share = (uss[ARRAY_MB] - uss[1]) / (ARRAY_MB * 1e6)
            print(f"a worker's own memory, {name}: {uss[1] / 1e6:.0f} MB; {share:+.1%} of {ARRAY_MB} MB shared")
            found[f"{name}_share"] = share
    return found


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--repeats", type=int, default=REPEATS, metavar="N")
    parser.add_argument("--only", default="tasks,memory,extraction,grid", metavar="PARTS")
    add_json_option(parser)
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    here = str(Path(__file__).resolve().parent)  # whose modules workers on a cluster import
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder:
        for part in args.only.split(","):
            if part in ("extraction", "grid"):
                measure = extraction if part == "extraction" else grid
                figures[part] = measure(Path(folder), args.workers, args.repeats)
            else:
                figures[part] = tasks(args.workers) if part == "tasks" else memory(args.workers)
    add_results(args.json, "engines", figures)


if __name__ == "__main__":
    main()
