"""Train in bf16 and in fp32 with several seeds, and print both means beside the spread of the seeds.

python benchmarks/bench_precision.py                  on the demo slides, which are generated
python benchmarks/bench_precision.py --cache cache --dataset her2st --split loso
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from results import add_json_option, add_results

PRECISIONS = ("fp32", "bf16")
METRICS = ("pcc@10", "pcc@50", "pcc@200", "mse", "mae")


def command(name: str, *argv: str) -> None:
    """Run an installed command; its output is shown only where it fails."""
    script = str(Path(sys.executable).parent / name)
    process = subprocess.run([script, *argv], capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(process.stderr)


def metrics_of(runs: Path) -> dict[str, float]:
    """Mean over the folds of the one run in a folder."""
    (summary,) = runs.rglob("summary.json")
    mean: dict[str, float] = json.loads(summary.read_text())["mean"]["hist"]
    return mean


def main() -> None:
    """Train with every seed in both precisions, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache")
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--split", default="slide")
    parser.add_argument("--seeds", default="42,43,44")
    parser.add_argument("--width", help="of the model (default: the dataset's)")
    add_json_option(parser)
    args = parser.parse_args()
    seeds = args.seeds.split(",")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cache = args.cache
        if cache is None:
            cache = str(root / "cache")
            command("hist-extract", "--dataset", "demo", "--cache", cache)
        common = ["--cache", cache, "--dataset", args.dataset, "--split", args.split]
        common += ["--width", args.width] if args.width else []
        found: dict[str, list[dict[str, float]]] = {precision: [] for precision in PRECISIONS}
        for seed in seeds:
            for precision in PRECISIONS:
                runs = root / f"{precision}-{seed}"
                command("hist-train", *common, "--seed", seed, "--precision", precision, "--runs", str(runs))
                found[precision].append(metrics_of(runs))
    print(f"{args.dataset}, split {args.split}, seeds {args.seeds}: mean over folds, then mean and std over seeds")
    print(f"{'':8}  {'fp32':>15}  {'bf16':>15}  bf16 - fp32  same seed")
    figures = {}
    for metric in METRICS:
        values = {p: [row[metric] for row in rows] for p, rows in found.items() if metric in rows[0]}
        if not values:
            continue
        means = {p: statistics.mean(v) for p, v in values.items()}
        stds = {p: statistics.stdev(v) for p, v in values.items()}
        pairs = [b - a for a, b in zip(values["fp32"], values["bf16"], strict=True)]
        cells = "  ".join(f"{means[p]:7.4f} ± {stds[p]:.4f}"[:15].rjust(15) for p in PRECISIONS)
        widest = max(pairs, key=abs)
        print(f"{metric:8}  {cells}  {means['bf16'] - means['fp32']:+11.4f}  {widest:+9.4f}")
        figures[metric] = {"means": means, "stds": stds, "pairs": pairs}
    add_results(args.json, "precision", {args.dataset: figures})


if __name__ == "__main__":
    main()
