"""A training step against its floor, an epoch against the usual way, and cost against size, in one run.

    python benchmarks/bench_train.py [--width 1024] [--spots 4000]

The floor of a step: its matrix products at the GEMM rate measured here, plus the optimiser's memory traffic at the
bandwidth measured here. The usual way: the same step fed by a DataLoader that reads spot by spot from HDF5.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from train.data import SpotData
from train.fit.loop import FitConfig, gather, make_optimizer, step, train_epoch
from train.models.hist import HistConfig, HistModel
from train.models.variants import get_variant

BATCH = 128
SMALL = 256  # a width whose model has about 4 M parameters
TRAFFIC = 7 * 4  # bytes a parameter: AdamW reads weight, gradient and two moments, writes weight and moments, float32


def seconds(work: Callable[[], object], repeats: int = 7) -> float:
    """Median time of `work`, after one warm-up; waits for a GPU."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def make_data(spots: int, width: int, genes: int, device: torch.device) -> SpotData:
    g = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2, spots, width, generator=g).half().to(device)
    profiles = torch.rand(2, spots, genes, generator=g).mul_(6).to(device)
    slide = torch.zeros(spots, dtype=torch.int64, device=device)
    row, complete = torch.arange(spots, device=device), torch.ones(spots, dtype=torch.bool, device=device)
    names = [f"G{i}" for i in range(genes)]
    return SpotData(*embeddings, *profiles, slide, row, complete, ["A"], names)


def make_model(data: SpotData, width: int, device: torch.device) -> HistModel:
    torch.manual_seed(0)
    return HistModel(HistConfig(data.spot.shape[1], len(data.panel), width=width), get_variant("full")).to(device)


def gemm_flops(model: HistModel) -> float:
    """Floating-point operations of a step's matrix products: forward, and backward to weights and to inputs."""
    total = 0.0
    first = {id(s.enter) for s in (model.image_spot, model.image_niche, model.gene_spot, model.gene_niche)}
    uses = {id(model.project_image): 2, id(model.project_gene): 2}  # spot and niche share a projection
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            products = 2 if id(layer) in first else 3  # nothing flows back into the data
            total += products * uses.get(id(layer), 1) * 2 * BATCH * layer.in_features * layer.out_features
    return total + 3 * 3 * 2 * BATCH * BATCH * model.config.width  # three distance matrices


def gemm_rate(device: torch.device) -> float:
    a, b = torch.randn(2, 2048, 2048, device=device)
    return 2 * 2048**3 / seconds(lambda: a @ b)


def bandwidth(device: torch.device) -> float:
    a, b = torch.zeros(2, 1 << 26, device=device)
    return 2 * a.nbytes / seconds(lambda: b.copy_(a))


class HdfDataset(Dataset):
    """Spot by spot from HDF5, as most training code reads its features; `reopen`: the file is opened for each."""

    def __init__(self, path: Path, reopen: bool) -> None:
        self.path, self.reopen, self.file = path, reopen, None
        with h5py.File(path) as file:
            self.n = len(file["spot"])

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[np.ndarray, ...]:
        names = ("spot", "niche", "expression", "niche_expression")
        if self.reopen:
            with h5py.File(self.path, "r") as file:
                return tuple(file[name][i].astype(np.float32) for name in names)
        self.file = self.file or h5py.File(self.path, "r")
        return tuple(self.file[name][i].astype(np.float32) for name in names)


def report(arguments: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = make_data(arguments.spots, 1024, 200, device)
    model = make_model(data, arguments.width, device)
    optimizer = make_optimizer(model, FitConfig())
    parameters = sum(p.numel() for p in model.parameters())
    rows = torch.arange(BATCH, device=device)
    model.train()
    pairs = []
    for _ in range(arguments.rounds):  # interleaved, since machines drift
        flops, rate = gemm_flops(model), gemm_rate(device)
        products, optimiser = flops / rate, TRAFFIC * parameters / bandwidth(device)
        pairs.append((seconds(lambda: step(model, optimizer, gather(data, rows))), products, optimiser, rate))
    took, products, optimiser, rate = (statistics.median(p[i] for p in pairs) for i in range(4))
    ratio = statistics.median(p[0] / (p[1] + p[2]) for p in pairs)
    print(
        f"{device.type}, {torch.get_num_threads()} threads; {parameters / 1e6:.1f} M parameters, batch {BATCH}, float32"
    )
    print(
        f"GEMM {rate / 1e9:,.0f} GFLOP/s; floor {1e3 * (products + optimiser):.1f} ms = "
        f"products {1e3 * products:.1f} + optimiser {1e3 * optimiser:.1f}"
    )
    print(f"step {1e3 * took:.1f} ms: {ratio:.2f} x its floor")

    print_profile(lambda: step(model, optimizer, gather(data, rows)))
    for width in sorted({arguments.width, SMALL}):
        compare_epochs(make_model(data, width, device), data, device)
    scaling(arguments, device)


def print_profile(work: Callable[[], object]) -> None:
    """Where a step's time goes, by operation: its own CPU time (on a GPU, its own device time)."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as profiled:
        work()
    field = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    rows = sorted(profiled.key_averages(), key=lambda row: -getattr(row, field))
    total = sum(getattr(row, field) for row in rows)
    shares = [f"{row.key.removeprefix('aten::')} {getattr(row, field) / total:.0%}" for row in rows[:10]]
    print("  where it goes: " + ", ".join(shares))


def compare_epochs(model: HistModel, data: SpotData, device: torch.device) -> None:
    """An epoch on the cache in memory, and the same steps fed spot by spot from HDF5."""
    optimizer, order = make_optimizer(model, FitConfig()), torch.Generator().manual_seed(0)
    every = torch.arange(len(data.spot), device=device)
    ours = seconds(lambda: train_epoch(model, optimizer, data, every, BATCH, order), 3)
    feeding = seconds(lambda: [gather(data, part) for part in every.split(BATCH)], 3)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{size:.1f} M parameters, epoch of {len(every):,} spots: {ours:.2f} s, of which feeding {feeding:.3f} s")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.h5"
        with h5py.File(path, "w") as file:
            for name in ("spot", "niche", "expression", "niche_expression"):
                values = getattr(data, name).cpu().numpy()  # growable, a chunk a row: how feature files are written
                chunk, grow = (1, values.shape[1]), (None, values.shape[1])
                file.create_dataset(name, data=values, chunks=chunk, maxshape=grow)

        def usual(reopen: bool, workers: int) -> None:
            items = HdfDataset(path, reopen)
            for batch in DataLoader(items, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers):
                step(model, optimizer, tuple(t.to(device) for t in batch))

        for reopen in (False, True):
            for workers in (0, 2):
                theirs = seconds(lambda: usual(reopen, workers), 1)  # noqa: B023
                how = "opened for each spot" if reopen else "kept open"
                print(f"  per-item HDF5, file {how}, {workers} workers: {theirs:.2f} s, {theirs / ours:.1f} x")


def scaling(arguments: argparse.Namespace, device: torch.device) -> None:
    """An epoch's cost against spots and genes."""

    def epoch(spots: int, genes: int) -> float:
        data = make_data(spots, 1024, genes, device)
        model = make_model(data, arguments.width, device)
        optimizer, order = make_optimizer(model, FitConfig()), torch.Generator().manual_seed(0)
        return seconds(lambda: train_epoch(model, optimizer, data, torch.arange(spots, device=device), BATCH, order), 3)

    small, large = epoch(8 * BATCH, 200), epoch(32 * BATCH, 200)
    print(f"four times the spots: {large / small:.2f} x the time")
    print(f"genes 200 -> 3,000: {epoch(8 * BATCH, 3000) / small:.2f} x the time")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--spots", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    report(parser.parse_args())
