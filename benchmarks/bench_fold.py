"""Time a fold on a GPU or a CPU, with steps launched one by one and with recorded steps, and count its kernels.

    python benchmarks/bench_fold.py                       20,000 spots, 100 epochs, embeddings of 1,024 numbers
    python benchmarks/bench_fold.py --spots 2000 --epochs 2 --widths 256

Data are random. Every kind of step is timed for a few epochs, in turns. Then a whole fold is trained and validated with
the fastest kind for the widest model; with few spots and small models the CPU's launches decide, not the GPU's work.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from bench_train import BATCH, make_data, make_model
from results import add_json_option, add_results
from torch import Tensor

from extract.pipeline import has_fast_bf16
from hist_cache.console import show_logs
from train.data import SpotData
from train.fit.batches import read_batch
from train.fit.config import FitConfig
from train.fit.graph import RecordedStep, why_not_recorded
from train.fit.loop import fit
from train.fit.step import make_optimizer, step

VALIDATION = 0.1  # of the spots, besides those that train
EPOCHS = 4  # timed of each kind of step; the first is left out, in which libraries set up and steps are recorded


def train(
    data: SpotData, width: int, precision: str, record: bool, epochs: int, spots: int
) -> tuple[list[float], float, float]:
    """Train on the first spots and validate on the others: seconds of each epoch, of all, and peak memory in GB."""
    device = data.spot.device
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    model = make_model(data, width, device)
    model.precision = precision  # type: ignore[assignment]
    rows = torch.arange(len(data.row), device=device)
    started = time.perf_counter()
    config = FitConfig(epochs=epochs, patience=epochs, batch_size=BATCH)
    progress = fit(model, data, rows[:spots], rows[spots:], config, None, record=record)
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else float("nan")
    return [row["seconds"] for row in progress.history], time.perf_counter() - started, peak


def kernels(data: SpotData, width: int, precision: str) -> int:
    """Kernels that one ordinary step launches, as the profiler counts them; operations on a CPU."""
    from torch.profiler import ProfilerActivity, profile

    model = make_model(data, width, data.spot.device)
    model.precision = precision  # type: ignore[assignment]
    optimizer, rows = make_optimizer(model, data.inputs, FitConfig()), torch.arange(BATCH, device=data.spot.device)

    def work() -> None:
        step(model, data.inputs, optimizer, read_batch(data, rows))

    work()
    on_gpu = data.spot.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as profiled:
        work()
    if not on_gpu:
        return sum(1 for event in profiled.events() or () if event.name.startswith("aten::"))
    return sum(1 for event in profiled.events() or () if str(event.device_type).endswith("CUDA"))


def replayed(data: SpotData, width: int, precision: str) -> float:
    """Milliseconds of a recorded step alone, replayed many times without anything in between."""
    model = make_model(data, width, data.spot.device)
    model.precision = precision  # type: ignore[assignment]
    optimizer, rows = make_optimizer(model, data.inputs, FitConfig()), torch.arange(BATCH, device=data.spot.device)
    recorded = RecordedStep(model, optimizer, data, BATCH, 5.0)
    return 1e3 * per_call(recorded, rows)


def per_call(work: Callable[[Tensor], object], rows: Tensor, calls: int = 200) -> float:
    """Seconds a call, of many calls that the GPU is waited for once."""
    for _ in range(5):
        work(rows)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(calls):
        work(rows)
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / calls


def main() -> None:
    """Time every kind of step, then a whole fold, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--widths", default="1024,256")
    add_json_option(parser)
    arguments = parser.parse_args()
    show_logs()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spots, steps = arguments.spots, arguments.spots // BATCH
    data = make_data(spots + int(VALIDATION * spots), 1024, 200, device)
    widths = [int(width) for width in arguments.widths.split(",")]
    precisions = ["fp32"] + ["bf16"] * has_fast_bf16(device)
    records = [False] if (reason := why_not_recorded(data, spots, BATCH)) else [False, True]
    print(f"{spots:,} spots, batch {BATCH}, {steps} steps an epoch, on {device.type}{f'; {reason}' if reason else ''}")
    found: dict[str, dict[str, Any]] = {}
    for width, precision in itertools.product(widths, precisions):
        count = kernels(data, width, precision)
        print(f"width {width} {precision}: {count} {'kernels' if device.type == 'cuda' else 'operations'} a step")
        for record in records:
            name = f"width {width} {precision}{' recorded' if record else ''}"
            seconds, _, peak = train(data, width, precision, record, EPOCHS, spots)
            epoch = statistics.median(seconds[1:])
            found[name] = {"epoch_s": epoch, "step_ms": 1e3 * epoch / steps, "peak_gb": peak, "kernels": count}
            if record:
                found[name]["replay_ms"] = replayed(data, width, precision)
            figures = ", ".join(f"{k} {v:.3f}" for k, v in found[name].items() if k != "kernels")
            print(f"  {'recorded' if record else 'one by one'}: {figures}", flush=True)
            add_results(arguments.json, "fold", {name: found[name]})
    fastest = min((name for name in found if f"width {max(widths)} " in name), key=lambda name: found[name]["epoch_s"])
    precision = fastest.split()[2]
    _, whole, peak = train(data, max(widths), precision, "recorded" in fastest, arguments.epochs, spots)
    print(f"a fold of {spots:,} spots, {arguments.epochs} epochs, {fastest}: {whole:.1f} s, peak {peak:.2f} GB")
    figures = {"kind": fastest, "spots": spots, "epochs": arguments.epochs, "seconds": whole, "peak_gb": peak}
    add_results(arguments.json, "fold", {"whole": figures})


if __name__ == "__main__":
    main()
