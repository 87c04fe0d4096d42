"""Compare a grid of variants in one command with the same grid as one command per run, and print ratios.

python benchmarks/bench_grid.py                       on the demo slides, which are generated
python benchmarks/bench_grid.py --cache cache --dataset her2st --split loso --epochs 5
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import add_json_option, add_results

VARIANTS = "full,no_hea,clip"
FOLDS = 2
REPEATS = 3


def command(name: str) -> list[str]:
    """How a command is started, installed or not."""
    code = "import sys; from hist_cache import commands; sys.exit(getattr(commands, sys.argv.pop(1))())"
    return [sys.executable, "-c", code, name.replace("-", "_")]


def seconds(runs: Path, *argv: str) -> float:
    """Wall time of one hist-train in seconds, start-up included."""
    started = time.perf_counter()
    process = subprocess.run([*command("hist-train"), "--runs", str(runs), *argv], capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(process.stderr)
    return time.perf_counter() - started


def main() -> None:
    """Time the grid in every way and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache")
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--split", default="slide")
    parser.add_argument("--epochs", type=int, default=30)
    add_json_option(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cache = args.cache
        if cache is None:
            cache = str(root / "cache")
            subprocess.run([*command("hist-extract"), "--dataset", "demo", "--cache", cache], check=True, cwd=root)
        common = ["--cache", cache, "--dataset", args.dataset, "--split", args.split, "--epochs", str(args.epochs)]
        grid = [*common, "--ablation", VARIANTS, "--folds", str(FOLDS)]
        runs = root / "runs"
        one_by_one = [[*common, "--ablation", v, "--fold", str(i)] for v in VARIANTS.split(",") for i in range(FOLDS)]
        cases = {
            "one command, default": lambda: seconds(runs, *grid),
            "one command, --jobs 1": lambda: seconds(runs, *grid, "--jobs", "1"),
            "a command a run": lambda: sum(seconds(runs, *argv) for argv in one_by_one),
            "answered from the folders": lambda: seconds(runs, *grid),
        }
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(REPEATS):  # in turns, so that a slow minute affects all cases
            for name, measure in cases.items():
                times[name].append(measure())
                if name != "a command a run":  # the last case reads the folders of this one
                    shutil.rmtree(runs)
    median = {name: statistics.median(values) for name, values in times.items()}
    add_results(args.json, "grid", median)
    count = len(VARIANTS.split(",")) * FOLDS
    print(f"{count} runs, {args.epochs} epochs at most, {args.dataset}; medians of {REPEATS}, in turns")
    for name, value in median.items():
        print(f"  {name:28} {value:7.1f} s   {median['a command a run'] / value:5.2f} x as fast as a command a run")


if __name__ == "__main__":
    main()
