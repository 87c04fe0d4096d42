"""Compare fine-tuning from cached tokens with fine-tuning through the whole encoder, in one run; print ratios.

    python benchmarks/bench_finetune.py                  a ViT-L/16 with random weights, LoRA on 11 of its 24 blocks
    python benchmarks/bench_finetune.py --small          24 narrow blocks, which take minutes on two cores
    python benchmarks/bench_finetune.py --encoder timm:vit_small_patch16_224 --layers 4 --spots 128

A step encodes spots and niches in training mode, computes the squared error of a linear head on them, and updates with
AdamW. The crops that the whole encoder reads are decoded beforehand, as in hist-train; the gain of that is measured
separately, on all spots of a slide. Peak memory is that of a process that runs only one of the methods.
"""

from __future__ import annotations

import argparse
import copy
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import anndata
import torch
import torch.nn.functional as F
from finetune_limits import gemm_rate, print_limits
from results import add_json_option, add_results
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from extract.embeddings import embed_slide
from extract.encoders.encoder import Encoder, PooledEncoder, count_blocks, token_shape
from extract.encoders.lora import Adapted, LoraConfig, adapt, freeze_in_bf16
from extract.encoders.registry import load_encoder
from extract.encoders.weights import weights_digest
from extract.identity import common_identity, crop_sides_um, folder_name
from extract.pipeline import has_fast_bf16, start_pipeline
from extract.plan import Request, plan_extraction
from extract.scheduler import run_plan
from extract.slides.crops import plan_crops
from extract.slides.readers import open_image
from extract.tokens import make_tokens
from hist_cache.cache import Cache
from hist_cache.console import progress, show_logs, size
from hist_cache.demo.slides import write_demo
from hist_cache.slides import find_slide, slides_on_disk
from hist_cache.sources import HestFolder
from hist_cache.spots import read_spots
from hist_cache.token_files import token_path
from train.assembly import assemble, read_slides
from train.data import Inputs, SpotData
from train.finetune.crop_inputs import CropInputs, pixel_pipeline
from train.finetune.token_inputs import TokenInputs
from train.fit.batches import prefetch

SLIDE, NEIGHBORS, GENES, DEPTH = "DEMO1", 6, 200, 24
DECODED_BATCH = 128  # spots of a training batch
TOKENS, TOKENS_DISK, CROPS = "tokens in memory", "tokens from disk", "whole encoder, crops in memory"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_encoder(name: str | None, width: int) -> Encoder:
    """The encoder of a name with random weights, or a ViT/16 of 24 blocks of the given width if there is no name."""
    if name:
        return load_encoder(name, random_weights=True)
    torch.manual_seed(0)
    backbone = VisionTransformer(embed_dim=width, depth=DEPTH, num_heads=width // 64, num_classes=0)
    module = PooledEncoder(backbone, "cls").eval().requires_grad_(False)
    half = (0.5, 0.5, 0.5)
    return Encoder(
        f"vit-{DEPTH}x{width}", module, width, 224, half, half, "bicubic", False, "random", weights_digest(backbone)
    )


def make_slides(root: Path, spots: int) -> None:
    """Write a demo slide with all its spots in `all`, and with spots from its middle only in `some`."""
    write_demo(root / "all", [SLIDE])
    (root / "some").mkdir()
    for folder in ("wsis", "metadata"):
        (root / "some" / folder).symlink_to(root / "all" / folder)
    table = anndata.read_h5ad(root / "all/st" / f"{SLIDE}.h5ad")
    start = max(0, (table.n_obs - spots) // 2)
    (root / "some/st").mkdir()
    table[start : start + spots].copy().write_h5ad(root / "some/st" / f"{SLIDE}.h5ad")


def make_cache(encoder: Encoder, root: Path, folder: Path, precision: str) -> Cache:
    """Extract the embeddings of the slide, with a copy of the encoder."""
    common = common_identity(encoder, precision, 0)
    request = Request(HestFolder(root), (NEIGHBORS,), 0, common)
    cache = Cache(folder / "demo" / folder_name(encoder, common))
    plan = plan_extraction(request, [SLIDE], cache.folder)
    own = replace(encoder, module=copy.deepcopy(encoder.module))
    with (
        closing(start_pipeline(own, precision, DEVICE)) as pipeline,
        progress("extract", plan.crops, "crops") as meter,
    ):
        if errors := run_plan(plan, request, partial(embed_slide, request, pipeline, meter), {}):
            raise errors[0]
    return cache


class Trial:
    """Adapters and a head that are reset before every epoch, so that all epochs are the same."""

    def __init__(self, adapted: Adapted, data: SpotData, batch: int) -> None:
        torch.manual_seed(1)
        self.module, self.batch, self.spots = adapted.encoder.module, batch, len(data.row)
        self.head = nn.Linear(2 * adapted.encoder.width, GENES).to(DEVICE)
        self.trained = [*adapted.parameters, *self.head.parameters()]
        for parameter in adapted.parameters:  # new adapters have a zero factor, so the other factor gets no gradient
            nn.init.normal_(parameter, std=0.02)
        self.start = [p.detach().clone() for p in self.trained]
        self.targets = torch.randn(self.spots, GENES).to(DEVICE)

    def epoch(self, inputs: Inputs) -> tuple[float, list[float]]:
        """Train one epoch and return its time in seconds and the loss of each step."""
        with torch.no_grad():
            for parameter, value in zip(self.trained, self.start, strict=True):
                parameter.copy_(value)
        torch.manual_seed(2)
        self.module.train()
        optimizer = torch.optim.AdamW(self.trained, lr=1e-3)
        chunks = torch.randperm(self.spots).split(self.batch)
        losses = []
        started = time.perf_counter()
        for rows, levels in zip(chunks, prefetch(inputs, chunks), strict=True):
            loss = F.mse_loss(self.head(torch.cat([inputs.encode(x) for x in levels], 1)), self.targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        values = torch.stack(losses).tolist()  # waits for the GPU
        return time.perf_counter() - started, values


def openers(
    cache: Cache, data: SpotData, encoder: Encoder, block: int, precision: str
) -> dict[str, Callable[[], Inputs]]:
    """Functions that open the inputs of each method, by its name."""
    start = partial(TokenInputs, cache, data, NEIGHBORS, encoder, block, DEVICE, precision)
    place = "device" if DEVICE.type == "cuda" else "memory"
    return {
        TOKENS: partial(start, place=place),
        TOKENS_DISK: partial(start, place="disk"),
        CROPS: partial(CropInputs, cache, data, NEIGHBORS, encoder, DEVICE, precision, place=place),
    }


def compare(trial: Trial, opened: dict[str, Inputs], rounds: int) -> dict[str, float]:
    """Print losses and seconds per epoch; the methods take turns, so that a slow minute affects all of them."""
    times: dict[str, list[float]] = {name: [] for name in opened}
    losses: dict[str, list[float]] = {}
    for round_ in range(rounds + 1):  # the first round is a warm-up
        for name, inputs in opened.items():
            seconds, losses[name] = trial.epoch(inputs)
            if round_:
                times[name].append(seconds)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"forward and backward of {2 * trial.spots} crops, medians of {rounds}, in turns:")
    for name, seconds in median.items():
        difference = max(abs(a - b) for a, b in zip(losses[name], losses[CROPS], strict=True))
        print(
            f"  {name:32} {seconds:8.3f} s an epoch   {median[CROPS] / seconds:5.2f} x as fast as the whole encoder   "
            f"losses differ by {difference:.1e} at most (of {losses[CROPS][0]:.3f})"
        )
    return median


def peak_memory(argv: list[str], folder: Path) -> dict[str, int]:
    """Print and return the peak bytes of each method, measured in a process of its own."""
    peaks = {}
    print("peak memory of one epoch, " + ("of the GPU:" if DEVICE.type == "cuda" else "of the process:"))
    for name in (TOKENS, TOKENS_DISK, CROPS):
        command = [sys.executable, __file__, *argv, "--measure", name, "--folder", str(folder)]
        peaks[name] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        print(f"  {name:32} {size(peaks[name])}")
    return peaks


def reading(opened: dict[str, Inputs], path: Path, spots: int, batch: int) -> None:
    """Print the GB/s at which tokens are read in random order, batch by batch."""

    def drop_page_cache() -> None:
        """Make the system drop the pages of the file that it holds in memory."""
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)

    def rate(inputs: Inputs, prepare: Callable[[], None] = lambda: None) -> float:
        """Median GB/s; `prepare` is called before each repeat."""
        rates = []
        for _ in range(7):
            prepare()
            started = time.perf_counter()
            n_bytes = sum(level.nbytes for rows in torch.randperm(spots).split(batch) for level in inputs.read(rows))
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            rates.append(n_bytes / (time.perf_counter() - started) / 1e9)
        return statistics.median(rates)

    print(f"tokens on disk: {size(path.stat().st_size)}; read in random order, {2 * batch} crops at a time:")
    print(f"  {'in memory':32} {rate(opened[TOKENS]):8.2f} GB/s")
    print(f"  {'file that the system holds':32} {rate(opened[TOKENS_DISK]):8.2f} GB/s")
    print(f"  {'file on the disk alone':32} {rate(opened[TOKENS_DISK], drop_page_cache):8.2f} GB/s")


def decoding(encoder: Encoder, root: Path, slide: str, batch: int, rounds: int) -> None:
    """Print crops/s decoded once in the order of the slide, and decoded from the slide for batches of random spots."""
    files = find_slide(root, slide)
    coords = read_spots(files).coords
    sides = crop_sides_um(files, (NEIGHBORS,), 0)
    rates: dict[str, list[float]] = {"once, whole slide": [], "for each batch, from the slide": []}
    with closing(open_image(slide, files.image)) as image, closing(pixel_pipeline(encoder, DEVICE)) as pipeline:

        def decode(rows: Tensor) -> None:
            batch_coords = coords[rows.numpy()]
            crops = [plan_crops(name, batch_coords, side, files.um_per_px) for name, side in sides.items()]
            pipeline.stream(image, batch_coords, crops, lambda name, rows, pixels: pixels.to(torch.uint8).cpu())

        for _ in range(rounds):
            orders = ((torch.arange(len(coords)),), torch.randperm(len(coords)).split(batch))
            for name, chunks in zip(rates, orders, strict=True):
                started = time.perf_counter()
                for rows in chunks:
                    decode(rows)
                rates[name].append(2 * len(coords) / (time.perf_counter() - started))
    print(
        f"crops of {slide} decoded, {len(coords)} spots and niches, batches of {batch}, medians of {rounds}, in turns:"
    )
    for name, values in rates.items():
        print(f"  {name:32} {statistics.median(values):8.1f} crops/s")


def measure(arguments: argparse.Namespace) -> None:
    """Run all measurements, or one epoch of the method `--measure` to print its peak memory."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.folder or scratch)
        if not arguments.folder:
            make_slides(folder, arguments.spots)
        encoder = make_encoder(arguments.encoder, arguments.width)
        block = count_blocks(encoder) - arguments.layers
        precision = arguments.precision or ("bf16" if has_fast_bf16(DEVICE) else "fp32")
        cache = make_cache(encoder, folder / "some", folder / "cache", precision)
        if errors := make_tokens(cache, [SLIDE], [NEIGHBORS], encoder, block, folder / "some"):
            raise errors[0]
        slides = read_slides(cache, [NEIGHBORS])
        data = assemble(slides, NEIGHBORS, slides[SLIDE].genes[:1], torch.device("cpu"))
        adapted = adapt(encoder, LoraConfig(layers=arguments.layers))
        if precision == "bf16":
            freeze_in_bf16(adapted)
        encoder.module.to(DEVICE)
        encoder.module.backbone.set_grad_checkpointing(arguments.grad_checkpoint)
        trial = Trial(adapted, data, arguments.batch)
        starts = openers(cache, data, encoder, block, precision)
        if arguments.measure:
            trial.epoch(starts[arguments.measure]())
            if DEVICE.type == "cuda":
                print(torch.cuda.max_memory_allocated())
            else:
                print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            return
        print(
            f"{encoder.name}, {adapted.summary}\n{precision} on {DEVICE.type}, {torch.get_num_threads()} threads, "
            f"{arguments.spots} spots and niches, batches of {arguments.batch}"
        )
        opened = {name: start() for name, start in starts.items()}
        rate = gemm_rate(token_shape(encoder), DEVICE, precision)
        kinds = {name: opened[name] for name in (TOKENS, CROPS)}
        print_limits(kinds, CROPS, rate, trial.spots, trial.batch, arguments.rounds)
        median = compare(trial, opened, arguments.rounds)
        figures = {name: {"epoch_s": s, "faster": median[CROPS] / s} for name, s in median.items()}
        add_results(arguments.json, "finetune", figures | {"precision": precision, "spots": trial.spots})
        if arguments.epochs_only:
            return
        reading(opened, token_path(cache.folder, SLIDE, block), trial.spots, arguments.batch)
        root, slide = folder / "all", SLIDE
        if arguments.slides:
            root = Path(arguments.slides)
            slide = slides_on_disk(root)[0]
        decoding(encoder, root, slide, DECODED_BATCH, arguments.rounds)
        add_results(arguments.json, "finetune", {"peak_bytes": peak_memory(sys.argv[1:], folder)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", help="default: a ViT/16 of 24 blocks of --width")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=11, help="last blocks that are adapted")
    parser.add_argument("--spots", type=int, default=32, help="each with its niche: twice as many crops")
    parser.add_argument("--batch", type=int, default=16, help="spots a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["bf16", "fp32"])
    parser.add_argument("--grad-checkpoint", action="store_true")
    parser.add_argument("--slides", help="HEST folder whose first slide is decoded, instead of a demo slide")
    parser.add_argument("--small", action="store_true", help="width 384, 16 spots, batches of 8")
    add_json_option(parser)
    parser.add_argument("--epochs-only", action="store_true", help="no times of reading and decoding, no memory")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.small:
        arguments.width, arguments.spots, arguments.batch = 384, 16, 8
    show_logs()
    measure(arguments)
