"""Compare trials per hour of hist-sweep, with and without pruning, with one hist-train per trial; print ratios.

python benchmarks/bench_sweep.py                      on the demo slides, which are generated
python benchmarks/bench_sweep.py --cache cache --dataset her2st --split loso --epochs 5 --trials 10
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

N_TRAININGS = 3  # runs of hist-train, from which the time of all trials is extrapolated


def script(name: str) -> str:
    """Path of an installed command."""
    return str(Path(sys.executable).parent / name)


def seconds(command: str, *argv: str) -> float:
    """Wall time of one command in seconds, start-up included."""
    started = time.perf_counter()
    process = subprocess.run([script(command), *argv], capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(process.stderr)
    return time.perf_counter() - started


def main() -> None:
    """Time the sweeps and the trainings, and print trials per hour."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache")
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--split", default="slide")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--trials", type=int, default=30)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cache = args.cache
        if cache is None:
            cache = str(root / "cache")
            subprocess.run([script("hist-extract"), "--dataset", "demo", "--cache", cache], check=True, cwd=root)
        common = ["--cache", cache, "--dataset", args.dataset, "--split", args.split, "--folds", str(args.folds)]
        common += ["--epochs", str(args.epochs)]
        times: dict[str, float] = {}
        for pruner in ("median", "none"):
            runs = str(root / pruner)
            trials = ["--trials", str(args.trials), "--pruner", pruner]
            times[pruner] = seconds("hist-sweep", *common, "--runs", runs, *trials)
            [best] = Path(runs).glob("*/sweep-*/best.json")
            print(f"pruner {pruner}: {json.loads(best.read_text())['work']}")
        rng = random.Random(0)
        alphas = [str(round(10 ** rng.uniform(-2, 0), 4)) for _ in range(N_TRAININGS)]
        single_runs = [seconds("hist-train", *common, "--runs", str(root / "single"), "--alpha", a) for a in alphas]
        times["hist-train"] = sum(single_runs) / len(single_runs) * args.trials
    names = {
        "median": "hist-sweep, median pruner",
        "none": "hist-sweep, no pruning",
        "hist-train": f"hist-train a trial, from {N_TRAININGS}",
    }
    print(f"{args.trials} trials of {args.folds} folds, {args.epochs} epochs at most, {args.dataset}; its tests too")
    for key, name in names.items():
        rate = 3600 * args.trials / times[key]
        print(f"  {name:28} {rate:7.0f} trials/h   {times['hist-train'] / times[key]:5.2f} x hist-train a trial")


if __name__ == "__main__":
    main()
