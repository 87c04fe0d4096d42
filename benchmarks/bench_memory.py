"""Memory of phase two for each spot: after opening a cache, with tensors, at the peak; and the time of a panel.

python benchmarks/bench_memory.py
python benchmarks/bench_memory.py --spots 8000 --slide-spots 2000

Slides as of Visium are written to a temporary folder, with about 3,000 counted genes a spot. A process of its own opens
all of them and another one half of them. What a spot takes is the difference between the two over that of their spots,
so that what Python and its libraries take is not in it. Tensors are of 200 genes, and of embeddings of 1,024 numbers of
the spot and of one niche.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from results import add_json_option, add_results
from scipy.sparse import csr_matrix, vstack

from hist_cache.cache import Cache
from hist_cache.cached_slide import CachedSlide
from hist_cache.fingerprint import Fingerprint, identity_hash
from hist_cache.lattice import Lattice, ring_neighbors
from hist_cache.slide_file import write_slide
from train.workspace import DataKey, Workspace

GENES, WIDTH, PANEL = 18_000, 1024, 200
COMMON = {
    "encoder": "drawn",
    "weights": "0" * 64,
    "precision": "fp32",
    "pretrained": False,
    "lora": None,
    "crop_rule": {"min_spot_um": 0.0},
}
MEASURES = ("opened_kb", "tensors_kb", "peak_kb")


def drawn_counts(spots: int, rng: np.random.Generator) -> csr_matrix:
    """Counts of a slide, with about 3,000 of the genes in a spot."""
    rate = rng.lognormal(-2.55, 1.6, GENES)
    blocks = [rng.poisson(rate * rng.gamma(4, 0.25, (min(500, spots - i), 1))) for i in range(0, spots, 500)]
    return vstack([csr_matrix(block.astype(np.int32)) for block in blocks], format="csr")


def write_slides(folder: Path, slides: int, spots: int) -> float:
    """Write slides of drawn counts and embeddings; returns the mean number of counted genes in a spot."""
    rng = np.random.default_rng(0)
    columns = int(spots**0.5)
    sites = np.stack([np.arange(spots) % columns, np.arange(spots) // columns], axis=1)
    coords = 200.0 * np.stack([sites[:, 0] + sites[:, 1] / 2, sites[:, 1] * 3**0.5 / 2], axis=1)
    neighbors = ring_neighbors(Lattice("hex", sites, "array"), coords, 200.0, 1)
    array = np.stack([sites[:, 1], 2 * sites[:, 0] + sites[:, 1]], axis=1)
    counts, genes = drawn_counts(spots, rng), [f"GENE{i:05d}" for i in range(GENES)]
    for i in range(slides):
        name, order = f"S{i:03d}", rng.permutation(spots)
        embeddings = rng.standard_normal((2, spots, WIDTH), dtype=np.float32).astype(np.float16)
        slide = CachedSlide(
            *([f"{name}-{j}" for j in range(spots)], coords, array, embeddings[0], counts[order], genes),
            *(rng.integers(0, 255, (1024, 1024, 3), dtype=np.uint8), {6: embeddings[1]}, {6: neighbors}),
            {"slide": name, "lattice": "hex", "um_per_px": 0.5, "pitch_um": 100.0, "spot_um": 55.0}
            | {"thumbnail_downsample": 20.0},
        )
        write_slide(folder / f"{name}.h5", slide, Fingerprint(COMMON, {"image": f"{i:064d}"}, {}))
    return counts.nnz / spots


def resident_kb() -> float:
    """Memory of this process in kB."""
    return psutil.Process().memory_info().rss / 1e3


def measure(folder: Path) -> dict[str, float]:
    """Open a cache as hist-train does, choose a panel and make tensors, in this process."""
    times = [time.perf_counter()]
    workspace = Workspace(Cache(folder), [6])
    opened_kb = resident_kb()
    times.append(time.perf_counter())
    panel = workspace.panel("hmhvg", PANEL, list(workspace.slides))
    times.append(time.perf_counter())
    data = workspace.data(DataKey(6, tuple(panel), "log2", drop_edges=False), torch.device("cpu"))
    times.append(time.perf_counter())
    return {
        "spots": len(data.spot),
        "opened_kb": opened_kb,
        "tensors_kb": resident_kb(),
        "peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024,
        **dict(zip(("open_s", "panel_s", "tensors_s"), np.diff(times).tolist(), strict=True)),
    }


def report(arguments: argparse.Namespace) -> None:
    """Write the slides, measure half and all of them, and print what a spot takes."""
    slides = 2 * max(arguments.spots // arguments.slide_spots, 1)
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as root:
        every, half = (Path(root) / part / "drawn" / f"drawn-{identity_hash(COMMON)}" for part in ("every", "half"))
        half.mkdir(parents=True)
        counted = write_slides(every, slides, arguments.slide_spots)
        for file in sorted(every.glob("*.h5"))[: slides // 2]:
            os.link(file, half / file.name)
        few, many = (measured_apart(folder) for folder in (half, every))
    spots = many["spots"] - few["spots"]
    figures = {f"{name}_a_spot": (many[name] - few[name]) / spots for name in MEASURES}
    figures |= {f"{name}_a_spot": 1e3 * many[f"{name}_s"] / many["spots"] for name in ("open", "panel", "tensors")}
    print(f"{few['spots']:,} and {many['spots']:,} spots, {counted:,.0f} counted genes a spot, {os.cpu_count()} cores")
    print(
        "kB a spot: {opened_kb_a_spot:.1f} after opening, {tensors_kb_a_spot:.1f} with tensors, ".format(**figures),
        end="",
    )
    print("{peak_kb_a_spot:.1f} at the peak".format(**figures))
    print("ms a spot: {open_a_spot:.3f} to open, {panel_a_spot:.3f} for a panel, ".format(**figures), end="")
    print("{tensors_a_spot:.3f} for tensors".format(**figures))
    print(f"peak {many['peak_kb'] / 1e6:.2f} GB, with tensors {many['tensors_kb'] / 1e6:.2f} GB")
    add_results(arguments.json, "memory", figures)


def measured_apart(folder: Path) -> dict[str, float]:
    """`measure` in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--measure", str(folder)], stdout=subprocess.PIPE, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--spots", type=int, default=16_000, metavar="N", help="spots of the smaller of two caches (%(default)s)"
    )
    parser.add_argument("--slide-spots", type=int, default=4_000, metavar="N", help="spots of a slide (%(default)s)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    add_json_option(parser)
    chosen = parser.parse_args()
    if chosen.measure is not None:
        print(json.dumps(measure(chosen.measure)))
    else:
        report(chosen)
