"""hist-extract: embeddings of every spot and niche crop of a dataset, in HDF5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hist_cache.console import duration, progress, say, size, warn
from hist_cache.errors import HistError, InputError
from hist_cache.options import folder_option, option, parse, run

if TYPE_CHECKING:
    from extract.encoders.encoder import Encoder
    from extract.pipeline import Pipeline
    from extract.plan import Plan, Request
    from hist_cache.datasets import Dataset

DESCRIPTION = """Phase one: crop every spot and its niche from the slides of a dataset, run the encoder over them once,
store the embeddings. Stop it anywhere; the same command goes on from there."""


@dataclass(frozen=True)
class Config:
    dataset: str | None = option(
        None,
        "kidney, colorectum, skin, lung, kidney_papilla, her2st, demo; with --ids a name of your own",
        "NAME",
    )
    ids: str | None = option(None, "HEST slides instead of the dataset's own, e.g. SPA138,SPA139 or NCBI692-714", "IDS")
    data_root: str | None = option(None, "folder with st/, wsis/ and metadata/ (default: $HIST_DATA or ./data)", "D")
    cache: str | None = option(None, "folder of the cache (default: $HIST_CACHE or ./cache)", "D")
    encoder: str | None = option(None, "uni, uni2-h, virchow2, ..., timm:NAME, demo (default: the dataset's)", "NAME")
    weights: str | None = option(None, "file or folder with the encoder's weights", "F")
    random_weights: bool = option(False, "run the encoder with seeded random weights (recorded in the cache)")
    neighbors: str = option("6", "neighbourhood sizes: any of 6, 18, 36 (rings 1, 2, 3)", "K,K")
    min_spot_um: float = option(0.0, "spot crops are at least this wide, um (the release protocol: 112)", "UM")
    precision: Literal["bf16", "fp32"] | None = option(None, "default: bf16 where the machine computes it fast")
    lora: str | None = option(
        None, "embed with the adapter of a run of hist-train --finetune-lora (or of a fold)", "RUN"
    )
    tokens_at: int | None = option(
        None, "also store the activations entering this block (from 0), for fine-tuning to start there", "BLOCK"
    )
    status: bool = option(False, "show what the cache holds, and exit")
    verify: bool = option(False, "re-read the cache and check every digest, and exit")
    dry_run: bool = option(False, "show what would be computed, its size and time, and exit")
    download: bool = option(False, "fetch the dataset's missing files from Hugging Face, and exit")
    debug: bool = option(False, "show a traceback for every error")


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(Config, "hist-extract", DESCRIPTION, argv)
    return run(extract, config, config.debug)


def extract(config: Config) -> int:
    """Run the command; returns the exit code (0 done, 1 some slides failed)."""
    from hist_cache.datasets import custom_dataset, get_dataset, parse_ids

    if config.dataset is None and config.ids is None:
        raise InputError("which slides? give --dataset NAME or --ids ID,ID")
    if config.lora is not None and config.tokens_at is not None:
        raise InputError(
            "--lora and --tokens-at exclude each other: tokens are those of the encoder without an adapter"
        )
    if config.ids is not None:
        dataset = custom_dataset(parse_ids(config.ids), config.dataset or "custom")
    else:
        dataset = get_dataset(config.dataset or "")
    cache_root = folder_option(config.cache, "HIST_CACHE", "cache")
    data_root = folder_option(config.data_root, "HIST_DATA", "data")
    if config.status or config.verify:
        from extract.status import show_caches

        return show_caches(cache_root, dataset, verify=config.verify)
    if config.download and dataset.name != "demo":
        from hist_cache.download import download

        download(list(dataset.ids), data_root)
        return 0
    if dataset.name == "demo":
        data_root = make_demo(data_root, config)
        if config.download:
            return 0
    return compute(config, dataset, data_root, cache_root)


def make_demo(data_root: Path, config: Config) -> Path:
    """The demo dataset's root, generated on first use (below ./data unless --data-root says where)."""
    from hist_cache.demo.slides import missing_slides, write_demo

    if config.data_root is None:
        data_root = data_root / "demo"
    if missing_slides(data_root):
        say(f"generating the demo dataset in {data_root}")
        write_demo(data_root)
    return data_root


def compute(config: Config, dataset: Dataset, data_root: Path, cache_root: Path) -> int:
    """Plan and do the extraction."""
    from contextlib import closing

    from extract.identity import common_identity, folder_name
    from extract.plan import Request, mention_other_caches
    from extract.status import some
    from hist_cache.cache import Cache, remember_last
    from hist_cache.slides import is_absent

    sizes = parse_sizes(config.neighbors)
    absent = [slide for slide in dataset.ids if is_absent(data_root, slide)]
    slides = [slide for slide in dataset.ids if slide not in absent]
    if not slides:
        raise InputError(
            f"{data_root}: none of the slides of {dataset.name} ({absent[0]}, ...); fetch them with --download"
        )
    if absent:
        warn(
            f"{len(absent)} of the {len(dataset.ids)} slides of {dataset.name} are not in {data_root} "
            f"and left out: {some(absent)}"
        )

    encoder, pipeline = start_encoder(config, dataset)
    common = common_identity(encoder, pipeline.precision, config.min_spot_um)
    folder = cache_root / dataset.name / folder_name(encoder, common)
    mention_other_caches(folder, encoder.slug, common)
    with closing(pipeline):
        failed = fill(config, Request(data_root, sizes, config.min_spot_um, common), slides, folder, encoder, pipeline)
    cache = Cache(folder)
    if cache.slides and not config.dry_run:
        remember_last(cache_root, cache)
        say(f"{len(cache.slides)} slides in {folder}")
    return report_failures(failed)


def fill(
    config: Config, request: Request, slides: list[str], folder: Path, encoder: Encoder, pipeline: Pipeline
) -> list[HistError]:
    """Complete a cache folder, embeddings first, then tokens where they are asked for; returns the failures."""
    from functools import partial

    from extract.embeddings import embed_slide
    from extract.plan import make_plan
    from extract.scheduler import do_plan
    from extract.tokens import announce, compute_tokens, plan_tokens

    plan = make_plan(request, slides, folder)
    for error in plan.failed:
        warn(str(error))
    describe(plan, folder, encoder, request.sizes)
    tokens = None
    if config.tokens_at is not None:
        tokens = plan_tokens(request, encoder, config.tokens_at, [t.files.id for t in plan.tasks], folder)
        announce(tokens)
    if config.dry_run:
        seconds = plan.crops / crops_per_second(pipeline)
        if tokens is not None:
            with tokens.pipeline(encoder, like=pipeline) as short:
                seconds += tokens.plan.crops / crops_per_second(short)
        say(f"would take about {duration(seconds)}, going by a timed batch")
        return plan.failed

    made = {"device": str(pipeline.device), "weights": encoder.source}
    if config.lora is not None:
        made["adapter"] = str(Path(config.lora).resolve())
    with progress("extract", plan.crops, "crops") as meter:
        failed = do_plan(plan, request, partial(embed_slide, request, pipeline, meter), made)
    report(pipeline)
    if tokens is not None:
        with tokens.pipeline(encoder, like=pipeline) as short:
            failed += compute_tokens(tokens, short, made)
            report(short)
    return plan.failed + failed


def report(pipeline: Pipeline) -> None:
    """Say what a pipeline did, and how fast."""
    clock = pipeline.clock
    if clock.crops:
        say(
            f"{clock.crops:,} crops in {duration(clock.seconds)}: {clock.crops / clock.seconds:,.1f} crops/s, "
            f"{clock.waiting_share:.0%} of the time waiting for pixels"
        )


def start_encoder(config: Config, dataset: Dataset) -> tuple[Encoder, Pipeline]:
    """Load the encoder, with its adapter if any, onto the best device there is, saying which."""
    import torch

    from extract.encoders.encoder import check_block
    from extract.encoders.registry import load_encoder
    from extract.pipeline import start_pipeline

    weights = Path(config.weights) if config.weights else None
    if config.lora is not None:
        encoder = start_tuned(config, Path(config.lora), weights)
    else:
        encoder = load_encoder(config.encoder or dataset.encoder, weights, config.random_weights)
    if config.tokens_at is not None:
        check_block(encoder, config.tokens_at)
    pipeline = start_pipeline(encoder, config.precision)
    if pipeline.device.type == "cuda":
        where = torch.cuda.get_device_name()
    else:
        where = f"the CPU ({torch.get_num_threads()} cores; no GPU found)"
    say(f"encoder {encoder.name} ({encoder.source}) in {pipeline.precision} on {where}")
    return encoder, pipeline


def start_tuned(config: Config, run: Path, weights: Path | None) -> Encoder:
    """The encoder of a fine-tuned run, its adapter merged; --encoder and --weights are only needed to find it."""
    from extract.encoders.adapters import find_adapter, merge_adapter, read_owner
    from extract.encoders.registry import load_encoder

    folder = find_adapter(run)
    owner = read_owner(folder)
    random = config.random_weights or (config.encoder is None and weights is None and not owner.pretrained)
    encoder = merge_adapter(load_encoder(config.encoder or owner.encoder, weights, random), folder)
    say(f"encoder {encoder.name} with the adapter {folder} (digest {str(encoder.lora)[:12]}) merged into its weights")
    return encoder


def crops_per_second(pipeline: Pipeline) -> float:
    """The bare encoder's rate on this device, from the faster of two batches."""
    import time

    inputs = pipeline.inputs.empty(pipeline.batch_size).zero_()
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        pipeline.encode(inputs).cpu()
        seconds.append(time.perf_counter() - started)
    return pipeline.batch_size / min(seconds)


def describe(plan: Plan, folder: Path, encoder: Encoder, sizes: tuple[int, ...]) -> None:
    """One line of what is there and what is to do."""
    states = {"complete": 0, "add": 0, "new": 0}
    for task in plan.tasks:
        states[task.state] += 1
    todo = f"{states['new']} to extract" + (f", {states['add']} to add niches to" if states["add"] else "")
    say(
        f"{folder}: {states['complete']} slides complete, {todo}, {len(plan.failed)} failed: "
        f"{plan.crops:,} crops (spots and niches {','.join(map(str, sizes))}), {size(plan.crops * encoder.width * 2)}"
    )


def parse_sizes(text: str) -> tuple[int, ...]:
    """`6,18` -> (6, 18); `InputError` for anything but 6, 18 and 36."""
    from hist_cache.lattice import RINGS

    try:
        sizes = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        sizes = ()
    if not sizes or not set(sizes) <= set(RINGS):
        raise InputError(f"--neighbors {text}: give any of 6, 18, 36, such as 6,18")
    return sizes


def report_failures(failed: list[HistError]) -> int:
    if failed:
        warn(f"{len(failed)} slides failed:")
        for error in failed:
            warn(f"  {error}")
    return int(bool(failed))
