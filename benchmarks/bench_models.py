"""What every model costs against the size of a slide: seconds an epoch, seconds for 1,000 spots, peak memory.

python benchmarks/bench_models.py
python benchmarks/bench_models.py --models hist,stem,triplex --spots 1000,10000 --precision bf16

Embeddings and expression are drawn, and all spots lie on one hexagonal slide. Each case is a process of its own, for
its memory. A model trains a few steps, and an epoch is the median step times the number of steps. Where a prediction of
all spots would take too long, some are predicted and the rest is extrapolated, which is marked. Ratios are to the first
model, in one run.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import add_json_option, add_results
from torch import Tensor

from hist_cache.lattice import Lattice, ring_neighbors
from train.data import SpotData
from train.fit.config import FitConfig
from train.fit.loop import predict, train_epoch
from train.fit.step import make_optimizer
from train.models.base import Model
from train.models.registry import get_model, model_entries
from train.models.variants import get_variant

STEPS = 5
LONG_S = 10.0
"""A prediction that takes longer is not repeated with more spots."""


def hexagonal_slide(spots: int, width: int, genes: int, device: torch.device) -> SpotData:
    """A slide of drawn embeddings and expression, with two rings around each spot."""
    generator = torch.Generator().manual_seed(0)
    spot, niche = (torch.randn(spots, width, generator=generator).half().to(device) for _ in range(2))
    expression = torch.rand(spots, genes, generator=generator).mul_(8).to(device)
    columns = int(spots**0.5)
    sites = np.stack([np.arange(spots) % columns, np.arange(spots) // columns], axis=1)
    coords = 100.0 * np.stack([sites[:, 0] + sites[:, 1] / 2, sites[:, 1] * 3**0.5 / 2], axis=1)
    neighbors = torch.from_numpy(ring_neighbors(Lattice("hex", sites, "array"), coords, 100.0, 2)).long().to(device)
    rows = torch.arange(spots, device=device)
    return SpotData(
        *(spot, niche, expression, expression, torch.zeros_like(rows), rows, torch.ones_like(rows, dtype=torch.bool)),
        *(["A"], [f"G{i}" for i in range(genes)]),
        position=torch.from_numpy(coords).float().to(device),
        rings=(neighbors[:, :6], neighbors[:, 6:]),
    )


def make(name: str, data: SpotData, precision: str) -> Model:
    """A model with its default options."""
    entry = get_model(name)
    config = entry.config(data.spot.shape[1], len(data.panel))
    model = entry.load()(config, *([get_variant("full")] if entry.has_variants else []))
    model.precision = precision if entry.learns else "fp32"
    return model.to(data.spot.device)


def clock(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_gb(device: torch.device) -> float:
    """Peak memory so far: of the device on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def seconds_per_epoch(model: Model, data: SpotData, config: FitConfig) -> float:
    """The median of some steps, times the steps of an epoch."""
    optimizer = make_optimizer(model, data.inputs, config)
    order = torch.Generator().manual_seed(0)
    rows = torch.arange(len(data.slide), device=data.spot.device)
    batches = model.batches(rows, config.batch_size, order)
    times = []
    for batch in batches[: STEPS + 1]:
        started = clock(batch.device)
        train_epoch(model, optimizer, data, batch, len(batch), order)
        times.append(clock(batch.device) - started)
    return statistics.median(times[1:] or times) * len(batches)


def seconds_per_1000(model: Model, data: SpotData) -> tuple[float, bool]:
    """Seconds to predict 1,000 spots of the slide, and whether they are extrapolated from fewer than all spots.

    More and more spots are predicted until they take `LONG_S`; what more spots took is then taken for all others. It is
    measured twice at least: a model may encode the whole slide before the first spot.
    """
    rows = torch.arange(len(data.slide), device=data.spot.device)
    count, seconds = 1, timed_prediction(model, data, rows[:1])
    before = 0, 0.0
    while (seconds < LONG_S or count == 1) and count < len(rows):
        before = count, seconds
        count = min(4 * count, len(rows))
        seconds = timed_prediction(model, data, rows[:count])
    per_spot = max(0.0, seconds - before[1]) / (count - before[0])
    whole = seconds + per_spot * (len(rows) - count)
    return whole / len(rows) * 1000, count < len(rows)


def timed_prediction(model: Model, data: SpotData, rows: Tensor) -> float:
    """Seconds to predict rows of the slide anew."""
    model.train()  # what a model keeps of its slides is computed again
    started = clock(rows.device)
    predict(model, data, rows)
    return clock(rows.device) - started


def run_case(name: str, spots: int, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model on one slide, measured in this process."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    data = hexagonal_slide(spots, args.width, args.genes, device)
    before = peak_gb(device)
    model = make(name, data, args.precision)
    entry = get_model(name)
    config = FitConfig(**entry.training)
    rows = torch.arange(spots, device=device)
    model.look_around(data.surroundings)
    started = clock(device)
    model.prepare(data, rows, rows[: spots // 10], 0)
    prepared = clock(device) - started
    epoch = seconds_per_epoch(model, data, config) if entry.learns else None
    inference, is_extrapolated = seconds_per_1000(model, data)
    return {
        "prepare_s": prepared,
        "s_per_epoch": epoch,
        "s_per_1000_spots": inference,
        "extrapolated": is_extrapolated,
        "peak_gb": peak_gb(device),
        "gb_above_data": peak_gb(device) - before,
        "numbers_m": sum(v.numel() for v in model.state_dict().values()) / 1e6,
        "sampling": model.config.sampling,
    }


def in_process(name: str, spots: int, argv: list[str]) -> dict[str, Any]:
    """The figures of a case from a process of its own; what it says where it fails."""
    command = [sys.executable, str(Path(__file__)), *argv, "--case", f"{name},{spots}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"problem": (done.stderr.strip().splitlines() or ["it was killed"])[-1]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def line(name: str, found: dict[str, Any], first: dict[str, Any]) -> str:
    """A case as text, with ratios to the first model."""
    if "problem" in found:
        return f"{name:12} {found['problem']}"
    epoch, beside = found["s_per_epoch"], first.get("s_per_epoch")
    epoch_text = f"{found['prepare_s']:9.2f} s fit      " if epoch is None else f"{epoch:9.2f} s"
    if epoch is not None:
        epoch_text += f" {epoch / beside:7.2f} x" if beside else " " * 10
    inference = found["s_per_1000_spots"]
    ratio = inference / first["s_per_1000_spots"] if "s_per_1000_spots" in first else float("nan")
    mark = "*" if found["extrapolated"] else " "
    text = f"{name:12} {epoch_text} {inference:10.3f} s{mark} {ratio:9.2f} x {found['peak_gb']:7.2f} GB"
    return f"{text} ({found['gb_above_data']:5.2f} above the data) {found['numbers_m']:7.2f} M  {found['sampling']}"


def main() -> None:
    """Measure every model on every size of slide."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="all")
    parser.add_argument("--spots", default="1000,10000,50000")
    parser.add_argument("--width", type=int, default=1024, help="of the embeddings")
    parser.add_argument("--genes", type=int, default=200)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    add_json_option(parser)
    args = parser.parse_args()
    if args.case:
        name, spots = args.case.split(",")
        print(json.dumps(run_case(name, int(spots), args)))
        return
    names = [e.name for e in model_entries()] if args.models == "all" else args.models.split(",")
    own = {"--width": args.width, "--genes": args.genes, "--precision": args.precision, "--device": args.device}
    argv = [str(word) for pair in own.items() for word in pair]
    figures: dict[str, Any] = {}
    for spots in map(int, args.spots.split(",")):
        print(f"{spots:,} spots, {args.width} numbers each, {args.genes} genes, {args.precision}, {args.device}")
        print(f"{'':12} {'epoch':>11} {'':10} {'1,000 spots':>11}    (* extrapolated)   peak memory")
        first: dict[str, Any] = {}
        for name in names:
            found = in_process(name, spots, argv)
            first = first or found
            figures[f"{name} {spots}"] = found
            print(line(name, found, first), flush=True)
    add_results(args.json, "models", figures)


if __name__ == "__main__":
    main()
