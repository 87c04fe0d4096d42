"""Time a grid of variants: in one command, as a command for each run, and where its time goes.

python benchmarks/bench_grid.py                       on the demo slides, which are generated
python benchmarks/bench_grid.py --cache cache --dataset her2st --split loso --epochs 5
python benchmarks/bench_grid.py --against ../before --variants full,no_gi_hea,no_hea,no_hha,meru,clip --folds 5

With --against, the grid is run by this checkout and by another one in turns, instead of in several ways by this one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from results import add_json_option, add_results

HERE = Path(__file__).resolve().parent.parent
REPEATS = 3


def run_from(checkout: Path, program: list[str], *argv: str) -> tuple[float, str]:
    """Wall time in seconds, start-up included, and output of a Python program that imports from a checkout."""
    path = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path}
    started = time.perf_counter()
    process = subprocess.run(
        [sys.executable, *program, *argv], capture_output=True, text=True, cwd=checkout, env=environment
    )
    if process.returncode:
        raise SystemExit(process.stderr)
    return time.perf_counter() - started, process.stdout


def command(name: str) -> list[str]:
    """How a command is started, installed or not."""
    code = "import sys; from hist_cache import commands; sys.exit(getattr(commands, sys.argv.pop(1))())"
    return ["-c", code, name.replace("-", "_")]


def in_turns(cases: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Median seconds of each case; they take turns, so that a slow minute affects all of them."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, measure in cases.items():
            times[name].append(measure())
    return {name: statistics.median(values) for name, values in times.items()}


def ways(runs: Path, common: list[str], variants: str, folds: int) -> dict[str, Callable[[], float]]:
    """The ways to run a grid by this checkout."""
    grid = [*common, "--ablation", variants, "--folds", str(folds)]
    one_by_one = [[*common, "--ablation", v, "--fold", str(i)] for v in variants.split(",") for i in range(folds)]

    def train(*argv: str) -> float:
        return run_from(HERE, command("hist-train"), "--runs", str(runs), *argv)[0]

    def anew(*argv: str) -> float:
        shutil.rmtree(runs, ignore_errors=True)
        return train(*argv)

    return {
        "one command, default": lambda: anew(*grid),
        "one command, --jobs 1": lambda: anew(*grid, "--jobs", "1"),
        "a command a run": lambda: anew(*one_by_one[0]) + sum(train(*argv) for argv in one_by_one[1:]),
        "answered from the folders": lambda: train(*grid),
    }


def checkouts(root: Path, cache: Path, other: Path, argv: list[str]) -> dict[str, Callable[[], float]]:
    """The grid in one command, by this checkout and by another, each with a copy of the cache and runs of its own."""

    def grid(name: str, checkout: Path) -> float:
        copy, runs = root / f"cache-{name}", root / f"runs-{name}"
        if not copy.exists():
            shutil.copytree(cache, copy)
        shutil.rmtree(runs, ignore_errors=True)
        return run_from(checkout, command("hist-train"), "--runs", str(runs), "--cache", str(copy), *argv)[0]

    return {"this": lambda: grid("this", HERE), "other": lambda: grid("other", other)}


def print_shares(argv: list[str]) -> dict[str, float]:
    """Where the time of a grid in one process goes."""
    _, text = run_from(HERE, [str(HERE / "benchmarks/fold_parts.py")], *argv, "--jobs", "1")
    seconds: dict[str, float] = json.loads(text.strip().splitlines()[-1])
    whole = sum(seconds.values())
    print(f"where {whole:.1f} s of one process go")
    for part, value in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"  {part:28} {value:7.1f} s   {value / whole:6.1%}")
    return seconds


def main() -> None:
    """Time the grid in every way and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--split", default="slide")
    parser.add_argument("--variants", default="full,no_hea,clip")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--epochs", type=int, help="(default: 30; with --against the dataset's own)")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--against", type=Path, metavar="PATH", help="another checkout of this repository")
    add_json_option(parser)
    args = parser.parse_args()
    epochs = args.epochs or (None if args.against else 30)
    options = ["--dataset", args.dataset, "--split", args.split]
    options += ["--epochs", str(epochs)] if epochs else []
    grid = ["--ablation", args.variants, "--folds", str(args.folds)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cache = args.cache.resolve() if args.cache else root / "cache"
        if args.cache is None:
            run_from(HERE, command("hist-extract"), "--dataset", "demo", "--cache", str(cache))
        common = ["--cache", str(cache), *options]
        if args.against:
            cases = checkouts(root, cache, args.against.resolve(), [*options, *grid])
        else:
            cases = ways(root / "runs", common, args.variants, args.folds)
        median = in_turns(cases, args.repeats)
        count = len(args.variants.split(",")) * args.folds
        print(f"{count} runs, {epochs or 'all'} epochs at most, {args.dataset}; medians of {args.repeats}, in turns")
        beside = "other" if args.against else "a command a run"
        for name, value in median.items():
            print(f"  {name:28} {value:7.1f} s   {median[beside] / value:5.2f} x as fast as {beside}")
        shares = print_shares([*common, *grid, "--runs", str(root / "runs-shares")])
    add_results(args.json, "grid", median | {"shares": shares})


if __name__ == "__main__":
    main()
