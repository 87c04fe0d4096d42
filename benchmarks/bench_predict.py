"""hist-predict against the bare encoder, and its memory against the number of spots.

    python benchmarks/bench_predict.py --encoder timm:vit_small_patch16_224

Prints spots/s of the whole command over those of the encoder alone on batches that are in memory (twice as many crops),
from one run, and the peak memory with 1,000, 10,000 and 50,000 spots. For memory the encoder's output is drawn, because
50,000 spots take it half an hour on two cores; tiles, crops, blocks, files and predictions are real, and its weights
are loaded.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

UM_PER_PX = 1.0
TILE = 512
SIZES = (1_000, 10_000, 50_000)


def write_slide(path: Path, spots: int, pitch_um: float) -> None:
    """A slide that is tissue all over, with room for so many spots: one tile of structure, again and again."""
    import imagecodecs
    import tifffile

    side = int((spots * pitch_um**2 * 0.866) ** 0.5 / UM_PER_PX / TILE + 1) * TILE
    rng = np.random.default_rng(0)
    grain = rng.random((TILE, TILE, 3)) * 60
    tile = np.clip(np.array([190.0, 120.0, 170.0]) - grain, 0, 255).astype(np.uint8)
    data = imagecodecs.jpeg8_encode(tile, 80, colorspace="RGB", outcolorspace="RGB")
    count = (side // TILE) ** 2

    def tiles() -> Iterator[bytes]:
        for _ in range(count):
            yield data

    tifffile.imwrite(
        path, tiles(), shape=(side, side, 3), dtype=np.uint8, tile=(TILE, TILE), photometric="rgb", compression="jpeg"
    )


def prepare(folder: Path, encoder: str) -> Path:
    """A run to predict with: three slides of the demo, one fold, two epochs; returns its folder."""
    import extract.cli
    import train.cli
    from hist_cache.demo.slides import DEMO_IDS, write_demo

    ids = DEMO_IDS[:3]
    write_demo(folder / "hest", ids)
    where = ("--cache", folder / "cache")
    slides = ("--dataset", "bench", "--ids", ",".join(ids), "--data-root", folder / "hest")
    argv = [*slides, *where, "--encoder", encoder, "--random-weights"]
    assert extract.cli.main([str(a) for a in argv]) == 0
    short = ("--split", "loso", "--fold", 0, "--epochs", 2, "--jobs", 1, "--runs", folder / "runs")
    assert train.cli.main([str(a) for a in (*where, *short)]) == 0
    return next((folder / "runs" / "bench").glob("full-*"))


def predict(folder: Path, run: Path, slide: Path, pitch_um: float) -> float:
    """Seconds of hist-predict for a slide that it has not seen, in this process."""
    import shutil

    import train.predict.cli

    shutil.rmtree(folder / "cache" / "virtual", ignore_errors=True)
    argv = ("--run", run, "--wsi", slide, "--out", folder / "out", "--cache", folder / "cache", "--any-focus")
    started = time.perf_counter()
    more = ("--um-per-px", UM_PER_PX, "--pitch", pitch_um)
    assert train.predict.cli.main([str(a) for a in (*argv, *more)]) == 0
    return time.perf_counter() - started


def spots_in(folder: Path, slide: Path) -> int:
    """Spots that were predicted."""
    import h5py

    with h5py.File(folder / "out" / f"{slide.stem}.h5ad") as file:
        return int(file["X"].shape[0])


def speed(folder: Path, run: Path, encoder: str, spots: int, rounds: int) -> dict[str, float]:
    """Spots/s of the command and of the bare encoder, which is measured before and after each round."""
    from contextlib import closing

    from extract.encoders.registry import load_encoder
    from extract.pipeline import crops_per_second, start_pipeline

    slide = folder / "speed.tif"
    write_slide(slide, spots, 100)
    ratios, rates = [], []
    with closing(start_pipeline(load_encoder(encoder, random_weights=True))) as bare:
        for _ in range(rounds):
            before = crops_per_second(bare)
            seconds = predict(folder, run, slide, 100)
            alone = (before + crops_per_second(bare)) / 2 / 2  # two crops a spot
            rates.append(spots_in(folder, slide) / seconds)
            ratios.append(rates[-1] / alone)
            print(f"{rates[-1]:.1f} spots/s, the encoder alone {alone:.1f}: {ratios[-1]:.3f}", flush=True)
    return {"spots_per_s": float(np.median(rates)), "over_bare_encoder": float(np.median(ratios))}


def drawn_features(run: Path) -> None:
    """From here on in this process, the encoder gives numbers that are drawn instead of embeddings."""
    import torch

    from extract.pipeline import Pipeline

    def encode(self: Pipeline, inputs: torch.Tensor) -> torch.Tensor:
        return torch.randn(len(inputs), self.encoder.width)

    Pipeline.encode = encode  # type: ignore[method-assign]


def peak_of(folder: Path, run: Path, spots: int) -> None:
    """Print the peak memory of predicting so many spots, as JSON; for a process of its own."""
    drawn_features(run)
    slide = folder / f"memory{spots}.tif"
    pitch = 50.0
    write_slide(slide, spots, pitch)
    seconds = predict(folder, run, slide, pitch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / 1000
    print(json.dumps({"spots": spots_in(folder, slide), "peak_gb": peak, "seconds": seconds}))


def main() -> None:
    """Measure and print."""
    from results import add_json_option, add_results

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="timm:vit_small_patch16_224")
    parser.add_argument("--spots", type=int, default=2000, help="for the speed; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="spots for the memory; empty leaves it out")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    add_json_option(parser)
    arguments = parser.parse_args()
    if arguments.peak_of is not None:
        peak_of(arguments.folder, next((arguments.folder / "runs" / "bench").glob("full-*")), arguments.peak_of)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run = prepare(folder, arguments.encoder)
        figures: dict[str, object] = {"encoder": arguments.encoder}
        if arguments.spots:
            figures |= speed(folder, run, arguments.encoder, arguments.spots, arguments.rounds)
        peaks = []
        for spots in [int(text) for text in arguments.sizes.split(",") if text]:
            command = [sys.executable, __file__, "--folder", place, "--peak-of", str(spots)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks.append(json.loads(done.stdout.splitlines()[-1]))
            first, last = peaks[0], peaks[-1]
            growth = last["peak_gb"] / first["peak_gb"]
            print(
                f"{last['spots']:,} spots: peak {last['peak_gb']:.2f} GB, {growth:.2f} of that of {first['spots']:,}; "
                f"{last['seconds']:.0f} s without the encoder",
                flush=True,
            )
        add_results(arguments.json, "predict", figures | {"memory": peaks})


if __name__ == "__main__":
    main()
