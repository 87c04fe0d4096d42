"""Compare the speed of extraction with its limit, the encoder alone, and with the usual way, in one run.

    python benchmarks/bench_extract.py --data-root D [--ids SPA138,SPA139] [--encoder NAME] [--memory]
    python benchmarks/bench_extract.py --generated          a slide of noise, 16,000 x 16,000 px

Prints crops/s as a share of what the encoder alone reaches in the same precision on batches that are in memory already.
Both are measured in turns, because the speed of a machine varies. So is feeding alone: tiles decoded, crops cut, moved
to the device and resized there, without an encoder. The usual way reads each crop through OpenSlide and
resizes it with Pillow in the workers of a DataLoader. With `--memory`, prints how much more memory extraction of a
generated slide of 20,000 x 20,000 px takes, at its peak, than the encoder alone.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from results import add_json_option, add_results
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from extract.clock import Clock
from extract.encoders.encoder import Encoder, PooledEncoder
from extract.encoders.registry import load_encoder
from extract.pipeline import Pipeline, start_pipeline
from extract.slides.crops import Crops, niche_side_um, plan_crops
from extract.slides.readers import open_image
from hist_cache.console import show_logs
from hist_cache.slides import find_slide, slides_on_disk
from hist_cache.spots import read_spots


@dataclass(frozen=True)
class Work:
    """The crops of one slide: the centres of its spots (N, 2), and what is cut around them."""

    id: str
    image: Path
    coords: np.ndarray
    crops: list[Crops]


class NoEncoder(PooledEncoder):
    """Takes an encoder's place: gives one number per crop, for which all pixels must have arrived."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), "cls")

    def forward(self, crops: Tensor) -> Tensor:
        """The mean of each crop."""
        return crops.float().mean((1, 2, 3)).unsqueeze(1)


class CropDataset(Dataset[torch.Tensor]):
    """Crops of one slide, each read and resized on its own."""

    def __init__(self, path: Path, crops: list[Crops], encoder: Encoder) -> None:
        self.path, self.encoder = str(path), encoder
        self.slide: Any = None
        self.boxes = [(int(x), int(y), c.side_px) for c in crops for x, y in zip(c.left, c.top, strict=True)]
        self.mean, self.std = torch.tensor(encoder.mean), torch.tensor(encoder.std)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, i: int) -> torch.Tensor:
        import openslide

        self.slide = self.slide or openslide.OpenSlide(self.path)
        x, y, side = self.boxes[i]
        crop = self.slide.read_region((x, y), 0, (side, side)).convert("RGB")
        small = crop.resize((self.encoder.input_size,) * 2, PIL.Image.Resampling.BILINEAR)
        image = torch.from_numpy(np.asarray(small)).float().div_(255)
        return ((image - self.mean) / self.std).permute(2, 0, 1)


def encoder_alone(pipeline: Pipeline, batches: int) -> float:
    """Measure the crops/s of the encoder alone, on one batch in memory."""
    inputs = torch.randn(pipeline.transform.empty(pipeline.batch_size).shape).to(pipeline.device, pipeline.dtype)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    seconds = []
    for _ in range(batches):
        started = time.perf_counter()
        pipeline.encode(inputs).cpu()
        seconds.append(time.perf_counter() - started)
    return pipeline.batch_size / statistics.median(seconds)


def usual_way(pipeline: Pipeline, work: Work, workers: int) -> float:
    """Measure the crops/s of a DataLoader that reads and resizes crop by crop."""
    data = CropDataset(work.image, work.crops, pipeline.encoder)
    started = time.perf_counter()
    for batch in DataLoader(data, batch_size=pipeline.batch_size, num_workers=workers):
        pipeline.encode(batch.to(pipeline.device, pipeline.dtype)).cpu()
    return len(data) / (time.perf_counter() - started)


def slide_work(root: Path, slide: str, max_spots: int) -> Work:
    """The spot and niche crops of a slide, of at most `max_spots` spots."""
    files = find_slide(root, slide)
    coords = read_spots(files).coords[:max_spots]
    sides = {"spot": files.spot_um, "6": niche_side_um(1, files.pitch_um, files.spot_um)}
    return Work(slide, files.image, coords, [plan_crops(n, coords, s, files.um_per_px) for n, s in sides.items()])


def generated_work(folder: Path, max_spots: int, side: int = 16_000) -> Work:
    """A slide of noise at 0.5 um/px whose spots lie as those of Visium: 55 um wide, 100 um apart."""
    path = folder / "generated.tif"
    write_large_slide(path, side)
    y, x = np.mgrid[400 : side - 400 : 173.2, 400 : side - 400 : 200].reshape(2, -1)
    coords = np.stack([x, y], axis=1)[:max_spots]
    sides = {"spot": 55.0, "6": niche_side_um(1, 100.0, 55.0)}
    return Work("generated", path, coords, [plan_crops(name, coords, um, 0.5) for name, um in sides.items()])


def compare(arguments: argparse.Namespace) -> None:
    """Measure all on some slides, and print the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        if arguments.generated:
            works = [generated_work(Path(folder), arguments.spots)]
        else:
            root = Path(arguments.data_root)
            slides = arguments.ids.split(",") if arguments.ids else slides_on_disk(root)[:4]
            works = [slide_work(root, slide, arguments.spots) for slide in slides]
        compare_on(works, arguments)


def compare_on(works: list[Work], arguments: argparse.Namespace) -> None:
    """Measure all on these slides, and print the ratios."""
    encoder = load_encoder(arguments.encoder, random_weights=True)
    pipeline = start_pipeline(encoder, arguments.precision)
    device, threads = pipeline.device, torch.get_num_threads()
    encoder_alone(pipeline, 3)
    rounds: list[tuple[float, float, float]] = []
    rates: list[tuple[float, float, float, float]] = []
    for round_ in range(arguments.rounds):
        for work in works:
            limit, ours, waiting = measure_in_turns(pipeline, work)
            fed, pixels = feeding(pipeline, work)
            theirs = usual_way(pipeline, work, threads) if arguments.usual and round_ == 0 else float("nan")
            rounds.append((ours / limit, theirs / limit, waiting))
            rates.append((limit, ours, fed, pixels))
            print(
                f"{work.id}: bare encoder {limit:.1f} crops/s, hist-extract {ours:.1f} ({ours / limit:.3f}; "
                f"{waiting:.1%} waiting), feeding alone {fed:.1f} ({pixels / 1e6:,.0f} Mpx/s)"
                + (f", usual way {theirs:.1f} ({theirs / limit:.3f})" if theirs == theirs else ""),
                flush=True,
            )
    print(
        f"{arguments.encoder} {pipeline.precision} on {device.type}, {threads} threads, "
        f"medians of {len(rounds)} rounds:"
    )
    print(f"  hist-extract / bare encoder: {statistics.median(r[0] for r in rounds):.3f}")
    print(f"  share of time waiting for pixels: {statistics.median(r[2] for r in rounds):.3f}")
    names = ("bare_crops_per_s", "crops_per_s", "fed_crops_per_s", "fed_px_per_s")
    figures: dict[str, Any] = {name: statistics.median(r[i] for r in rates) for i, name in enumerate(names)}
    figures |= {"ratio": statistics.median(r[0] for r in rounds), "waiting": statistics.median(r[2] for r in rounds)}
    figures |= {"encoder": arguments.encoder, "precision": pipeline.precision, "device": device.type}
    add_results(arguments.json, "extract", figures)
    peers = [r[1] for r in rounds if r[1] == r[1]]
    if peers:
        print(f"  crop-by-crop DataLoader / bare encoder: {statistics.median(peers):.3f}")


def feeding(pipeline: Pipeline, work: Work) -> tuple[float, float]:
    """Measure crops/s, and pixels/s of the slide in them, of a pipeline without an encoder."""
    plain = replace(pipeline.encoder, module=NoEncoder(), width=1)
    image = open_image(work.id, work.image)
    with closing(Pipeline(plain, pipeline.device, pipeline.dtype, pipeline.batch_size, feeders(pipeline))) as fed:
        started = time.perf_counter()
        fed.embed(image, work.coords, work.crops)
        seconds = time.perf_counter() - started
    image.close()
    count = len(work.coords)
    return len(work.crops) * count / seconds, sum(count * c.side_px**2 for c in work.crops) / seconds


def feeders(pipeline: Pipeline) -> int:
    """Threads that prepare batches for a pipeline."""
    return pipeline._pool._max_workers


def measure_in_turns(pipeline: Pipeline, work: Work) -> tuple[float, float, float]:
    """Measure the encoder alone and the pipeline on one slide, in turns.

    On a CPU, the encoder alone runs one batch after each batch of the pipeline. On a GPU, where batches overlap, it
    runs before and after the slide.

    Returns:
        Crops/s of the encoder alone, crops/s of the pipeline, and the pipeline's share of waiting for pixels.
    """
    turns = pipeline.device.type == "cpu"
    size = pipeline.batch_size
    inputs = torch.randn(pipeline.transform.empty(size).shape).to(pipeline.device, pipeline.dtype)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    alone: list[float] = []

    def one_batch_alone(n: int) -> None:
        started = time.perf_counter()
        if turns and n == size:
            pipeline.encode(inputs)
            alone.append(time.perf_counter() - started)

    before = 0.0 if turns else encoder_alone(pipeline, 20)
    image = open_image(work.id, work.image)
    pipeline.clock = Clock()
    started = time.perf_counter()
    pipeline.embed(image, work.coords, work.crops, one_batch_alone)
    seconds = time.perf_counter() - started - sum(alone)
    image.close()
    limit = size * len(alone) / sum(alone) if turns else statistics.mean((before, encoder_alone(pipeline, 20)))
    return limit, pipeline.clock.crops / seconds, pipeline.clock.waiting / seconds


def write_large_slide(path: Path, side: int = 20_000) -> None:
    """Write a tiled JPEG TIFF of noise, tile by tile."""
    import tifffile

    rng = np.random.default_rng(0)

    def tiles() -> Iterator[np.ndarray]:
        for _ in range((-(-side // 256)) ** 2):
            yield np.kron(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8), np.ones((16, 16, 1), dtype=np.uint8))

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(
            tiles(),
            shape=(side, side, 3),
            dtype=np.uint8,
            tile=(256, 256),
            compression="jpeg",
            photometric="rgb",
        )


def peak_memory(arguments: argparse.Namespace) -> None:
    """Print the peak memory of the encoder on a batch, and with the crops of a large slide, each in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.tif"
        write_large_slide(path)
        peaks = {}
        for what in ("alone", "extract"):
            argv = [
                sys.executable,
                __file__,
                "--measure",
                what,
                "--image",
                str(path),
                "--encoder",
                arguments.encoder,
            ]
            peaks[what] = int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()[-1])
    whole, alone = peaks["extract"] / 1e6, peaks["alone"] / 1e6
    print(
        f"20,000 x 20,000 px slide: peak {whole:.2f} GB, encoder alone {alone:.2f} GB: {whole - alone:.2f} GB above it"
    )


def measure(arguments: argparse.Namespace) -> None:
    """Run one of the two, and print the peak memory of this process."""
    encoder = load_encoder(arguments.encoder, random_weights=True)
    pipeline = start_pipeline(encoder, device=torch.device("cpu"))
    encoder_alone(pipeline, 2)
    if arguments.measure == "extract":
        image = open_image("large", Path(arguments.image))
        # 0.25 um/px: spots of 220 px and niches of 6, 18 and 36 neighbours up to 2,620 px wide, on a few rows across
        x, y = np.meshgrid(np.arange(200, 19_800, 400), np.array([1_500, 1_850, 2_200, 10_000]))
        coords = np.stack([x.ravel(), y.ravel()], axis=1).astype(float)
        sides = {"spot": 55.0, "6": 255.0, "18": 455.0, "36": 655.0}
        pipeline.embed(image, coords, [plan_crops(n, coords, s, 0.25) for n, s in sides.items()])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root")
    parser.add_argument("--ids")
    parser.add_argument("--encoder", default="timm:vit_small_patch16_224")
    parser.add_argument("--precision", choices=["bf16", "fp32"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spots", type=int, default=10_000, help="first so many spots of each slide")
    parser.add_argument("--no-usual", dest="usual", action="store_false", help="leave out the crop-by-crop DataLoader")
    parser.add_argument("--generated", action="store_true", help="measure on a generated slide")
    parser.add_argument("--memory", action="store_true")
    add_json_option(parser)
    parser.add_argument("--measure", choices=["alone", "extract"], help=argparse.SUPPRESS)
    parser.add_argument("--image", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    show_logs()
    if chosen.measure:
        measure(chosen)
    elif chosen.memory:
        peak_memory(chosen)
    elif chosen.data_root is None and not chosen.generated:
        parser.error("--data-root: the folder with st/, wsis/ and metadata/")
    else:
        compare(chosen)
