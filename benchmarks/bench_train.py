"""Compare a training step with its lower bound and an epoch with the usual way, and show cost against size.

    python benchmarks/bench_train.py [--widths 1024,256] [--spots 2048] [--rounds 5]

The lower bound (floor) of a step is the time of its matrix products at the GEMM rate of this machine, in float32 or in
bf16, plus that of the optimiser's memory traffic at its bandwidth. All rates are measured in the same run, in turns
with the steps; so are the products of a step alone, because small ones do not reach that rate. The usual way is the
same epoch fed by a DataLoader that reads spot by spot from HDF5. Last comes what
reading a slide takes, and its digests' part in it.
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
from results import add_json_option, add_results
from scipy.sparse import random as random_sparse
from torch.utils.data import DataLoader, Dataset

from extract.pipeline import has_fast_bf16
from hist_cache.cached_slide import CachedSlide, find_problem, zero_rows
from hist_cache.fingerprint import Fingerprint, array_digest
from hist_cache.slide_file import read_slide, write_slide
from hist_cache.values import Precision
from train.data import Batch, SpotData
from train.fit.allocation import keep_freed_memory
from train.fit.batches import read_batch
from train.fit.config import FitConfig
from train.fit.loop import train_epoch
from train.fit.step import make_optimizer, step
from train.models.configs import HistConfig
from train.models.hist import HistModel
from train.models.variants import get_variant

BATCH = 128
STEPS = 7  # of which the median is taken, in each round
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TRAFFIC = 7 * 4  # bytes a parameter: AdamW reads weight, gradient and two moments, writes weight and moments, float32


def seconds(work: Callable[[], object], repeats: int = 7) -> float:
    """Median time of `work` in seconds after one warm-up; waits for the GPU."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def make_data(spots: int, width: int, genes: int, device: torch.device) -> SpotData:
    """Random embeddings and expression."""
    g = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2, spots, width, generator=g).half().to(device)
    profiles = torch.rand(2, spots, genes, generator=g).mul_(6).to(device)
    slide = torch.zeros(spots, dtype=torch.int64, device=device)
    row, complete = torch.arange(spots, device=device), torch.ones(spots, dtype=torch.bool, device=device)
    names = [f"G{i}" for i in range(genes)]
    return SpotData(*embeddings, *profiles, slide, row, complete, ["A"], names)


def make_model(data: SpotData, width: int, device: torch.device) -> HistModel:
    """The full model for these data, with the given latent width."""
    torch.manual_seed(0)
    return HistModel(HistConfig(data.spot.shape[1], len(data.panel), width=width), get_variant("full")).to(device)


def linear_layers(model: HistModel) -> list[tuple[torch.nn.Linear, bool]]:
    """Every linear layer as often as a step uses it, and whether its inputs are data, which need no gradient."""
    first = {id(s.enter) for s in (model.image_spot, model.image_niche, model.gene_spot, model.gene_niche)}
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    layers += [model.project_image, model.project_gene]  # spot and niche share a projection
    return [(layer, id(layer) in first) for layer in layers]


def gemm_flops(model: HistModel) -> float:
    """Floating-point operations of the matrix products of a step: forward, and backward to weights and to inputs."""
    sizes = ((2 if first else 3) * layer.in_features * layer.out_features for layer, first in linear_layers(model))
    return 2.0 * BATCH * sum(sizes) + 3 * 3 * 2 * BATCH * BATCH * model.config.width  # three distance matrices


def linear_products(model: HistModel, precision: Precision) -> Callable[[], object]:
    """The matrix products of a step's layers and nothing else, on tensors that have the right type already."""
    device, dtype = model.log_c.device, DTYPES[precision]
    tensors = []
    for layer, is_first in linear_layers(model):
        x, g = (torch.randn(BATCH, n, device=device).to(dtype) for n in (layer.in_features, layer.out_features))
        tensors.append((x, g, layer.weight.detach().to(dtype), is_first))

    def products() -> None:
        for x, _, weight, _ in tensors:
            x @ weight.t()
        for x, g, weight, is_first in reversed(tensors):
            g.t() @ x
            if not is_first:
                g @ weight

    return products


def gemm_rate(device: torch.device, precision: Precision) -> float:
    """Floating-point operations per second of a large matrix product."""
    n = 8192 if device.type == "cuda" else 2048  # waiting for a GPU takes as long as a smaller product
    a, b = torch.randn(2, n, n, device=device).to(DTYPES[precision])
    return 2 * n**3 / seconds(lambda: a @ b, STEPS)


def bandwidth(device: torch.device) -> float:
    """Bytes per second of a sum in place, as the optimiser's passes are: two reads and a write."""
    a, b = torch.zeros(2, 1 << (29 if device.type == "cuda" else 26), device=device)
    return 3 * a.nbytes / seconds(lambda: a.add_(b), STEPS)


class HdfDataset(Dataset):
    """Spots read one by one from HDF5, as most training code does; with `reopen` the file is opened for each spot."""

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
    """Measure everything and print it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory()
    data = make_data(arguments.spots, 1024, 200, device)
    print(f"{device.type}, {torch.get_num_threads()} threads; batch {BATCH}")
    widths = [int(width) for width in arguments.widths.split(",")]
    for width in widths:
        figures = compare_steps(width, data, device, arguments.rounds)
        add_results(arguments.json, "train", {f"width {width}": figures})
    for width in widths:
        compare_epochs(make_model(data, width, device), data, device)
    scaling(widths[0], device)
    loading(arguments.spots)


def compare_steps(width: int, data: SpotData, device: torch.device, rounds: int) -> dict[str, float]:
    """Print the steps of a model in both precisions beside both floors; returns the figures."""
    model = make_model(data, width, device).train()
    optimizer, rows = make_optimizer(model, data.inputs, FitConfig()), torch.arange(BATCH, device=device)
    parameters = sum(p.numel() for p in model.parameters())

    def one_step(precision: Precision) -> None:
        model.precision = precision
        step(model, data.inputs, optimizer, read_batch(data, rows))

    measured: list[dict[str, float]] = []
    for _ in range(rounds):  # interleaved, because the speed of a machine drifts
        optimiser = TRAFFIC * parameters / bandwidth(device)
        row = {"optimiser_ms": 1e3 * optimiser}
        for precision in PRECISIONS:
            row[f"{precision}_gflops"] = gemm_rate(device, precision) / 1e9
            row[f"{precision}_products_ms"] = gemm_flops(model) / row[f"{precision}_gflops"] / 1e6
            row[f"{precision}_floor_ms"] = row[f"{precision}_products_ms"] + row["optimiser_ms"]
            row[f"{precision}_step_ms"] = 1e3 * seconds(lambda: one_step(precision), STEPS)  # noqa: B023
            row[f"{precision}_alone_ms"] = 1e3 * seconds(linear_products(model, precision), STEPS)
            row[f"{precision}_ratio"] = row[f"{precision}_step_ms"] / row[f"{precision}_floor_ms"]
        row["bf16_gain"] = row["fp32_step_ms"] / row["bf16_step_ms"]
        measured.append(row)
    figures = {name: statistics.median(row[name] for row in measured) for name in measured[0]}
    print(f"width {width}, {parameters / 1e6:.1f} M parameters")
    for precision in PRECISIONS:
        f = {name.removeprefix(f"{precision}_"): value for name, value in figures.items()}
        print(
            f"  {precision}: step {f['step_ms']:.1f} ms, {f['ratio']:.2f} x its floor of {f['floor_ms']:.1f} ms = "
            f"products {f['products_ms']:.1f} (at {f['gflops']:,.0f} GFLOP/s; alone they take {f['alone_ms']:.1f}) + "
            f"optimiser {f['optimiser_ms']:.1f}"
        )
    print(f"  a step in bf16 is {figures['bf16_gain']:.2f} x as fast as in fp32")
    print_profile(lambda: one_step("bf16"))
    return figures


def loading(spots: int, genes: int = 18_000, share: float = 0.2) -> None:
    """Print how long it takes to read a slide from the cache, and how much of it are digests and checks of values."""
    rng = np.random.default_rng(0)
    counts = random_sparse(spots, genes, share, format="csr", random_state=0)
    counts.data = np.ceil(counts.data * 50)
    embeddings, niches = rng.normal(size=(2, spots, 1024)).astype(np.float16)
    neighbors = (np.arange(spots)[:, None] + np.arange(1, 7)) % spots
    names = [f"B{i}" for i in range(spots)], [f"G{i}" for i in range(genes)]
    coords, thumbnail = rng.normal(size=(spots, 2)), rng.integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
    array = np.full((spots, 2), -1)
    slide = CachedSlide(names[0], coords, array, embeddings, counts, names[1], thumbnail, {6: niches}, {6: neighbors})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "S.h5"
        write_slide(path, slide, Fingerprint({}, {}, {}))
        read = read_slide(path)
        texts = [np.array([text.encode() for text in texts], dtype=object) for texts in names]
        counts = read.counts
        arrays = [embeddings, niches, coords, thumbnail, counts.data, counts.indices, read.neighbors[6], *texts]
        whole, size = seconds(lambda: read_slide(path)), path.stat().st_size
    digests = seconds(lambda: [array_digest(array) for array in arrays])
    values = seconds(lambda: find_problem(read) or zero_rows(read))
    print(
        f"reading a slide of {spots:,} spots ({size / 1e6:.0f} MB): {whole:.2f} s, of which digests "
        f"{digests / whole:.0%} and checks of values {values / whole:.0%}"
    )


def print_profile(work: Callable[[], object]) -> None:
    """Print the share of each operation in the time of a step: its own CPU time, or device time on a GPU."""
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
    """Print the time of an epoch on the cache in memory, and of the same steps fed spot by spot from HDF5."""
    model.precision = "bf16" if has_fast_bf16(device) else "fp32"
    optimizer, order = make_optimizer(model, data.inputs, FitConfig()), torch.Generator().manual_seed(0)
    every = torch.arange(len(data.spot), device=device)
    cached = seconds(lambda: train_epoch(model, optimizer, data, every, BATCH, order), 3)
    feeding = seconds(lambda: [read_batch(data, part) for part in every.split(BATCH)], 3)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{size:.1f} M parameters in {model.precision}, epoch of {len(every):,} spots: {cached:.2f} s, "
        f"of which feeding {feeding:.3f} s"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.h5"
        with h5py.File(path, "w") as file:
            for name in ("spot", "niche", "expression", "niche_expression"):
                values = getattr(data, name).cpu().numpy()
                # Resizable with one row per chunk, as feature files are usually written.
                chunks, maxshape = (1, values.shape[1]), (None, values.shape[1])
                file.create_dataset(name, data=values, chunks=chunks, maxshape=maxshape)

        def train_from_hdf5(reopen: bool, workers: int) -> None:
            """Train one epoch on spots from the file."""
            items = HdfDataset(path, reopen)
            for batch in DataLoader(items, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers):
                spot, niche, expression, niche_expression = (t.to(device) for t in batch)
                rows = torch.arange(len(spot), device=device)
                step(model, data.inputs, optimizer, Batch(spot, niche, rows, expression, niche_expression, expression))

        for reopen in (False, True):
            for workers in (0, 2):
                from_hdf5 = seconds(lambda: train_from_hdf5(reopen, workers), 1)  # noqa: B023
                how = "opened for each spot" if reopen else "kept open"
                print(f"  per-item HDF5, file {how}, {workers} workers: {from_hdf5:.2f} s, {from_hdf5 / cached:.1f} x")


def scaling(width: int, device: torch.device) -> None:
    """Print how the time of an epoch grows with spots and genes."""

    def epoch(spots: int, genes: int) -> float:
        """Seconds of one epoch."""
        data = make_data(spots, 1024, genes, device)
        model = make_model(data, width, device)
        optimizer, order = make_optimizer(model, data.inputs, FitConfig()), torch.Generator().manual_seed(0)
        return seconds(lambda: train_epoch(model, optimizer, data, torch.arange(spots, device=device), BATCH, order), 3)

    small, large = epoch(8 * BATCH, 200), epoch(32 * BATCH, 200)
    print(f"four times the spots: {large / small:.2f} x the time")
    print(f"genes 200 -> 3,000: {epoch(8 * BATCH, 3000) / small:.2f} x the time")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="1024,256", help="latent widths; 256 gives a model of 4 M parameters")
    parser.add_argument("--spots", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    add_json_option(parser)
    report(parser.parse_args())
