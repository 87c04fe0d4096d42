"""hist-extract: compute the embeddings of every spot and niche crop of a dataset and store them in HDF5 files."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from extract.options import ExtractOptions
from hist_cache.console import duration, progress, say, size, warn
from hist_cache.devices import choose_device, device_name
from hist_cache.errors import HistError, InputError
from hist_cache.options import folder_option, parse, run

if TYPE_CHECKING:
    from extract.encoders.encoder import Encoder
    from extract.pipeline import Pipeline
    from extract.plan import ExtractionPlan, Request
    from hist_cache.datasets import Dataset

DESCRIPTION = """Phase one: crop every spot and its niche from the slides of a dataset, run the encoder over them once,
store the embeddings. Stop it anywhere; the same command goes on from there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run hist-extract with these arguments (by default the process's own); returns the exit code."""
    options = parse(ExtractOptions, "hist-extract", DESCRIPTION, argv)
    return run(extract, options, options.debug)


def extract(options: ExtractOptions) -> int:
    """Run the command.

    Returns:
        The exit code: 0 if everything is done, 1 if some slides failed.

    Raises:
        InputError: Options are missing or contradict each other.
    """
    from hist_cache.datasets import custom_dataset, get_dataset
    from hist_cache.id_files import read_ids
    from hist_cache.own_file import use_own_tables

    if options.dataset is None and options.ids is None:
        raise InputError("which slides? give --dataset NAME or --ids ID,ID")
    if options.lora is not None and options.tokens_at is not None:
        raise InputError(
            "--lora and --tokens-at exclude each other: tokens are those of the encoder without an adapter"
        )
    data_root = folder_option(options.data_root, "HIST_DATA", "data")
    use_own_tables(options.own, data_root)
    if options.ids is not None:
        dataset = custom_dataset(read_ids(options.ids), options.dataset or "custom")
    else:
        dataset = get_dataset(options.dataset or "")
    cache_root = folder_option(options.cache, "HIST_CACHE", "cache")
    if options.status or options.verify:
        from extract.status import show_caches

        return show_caches(cache_root, dataset, verify=options.verify)
    if options.download and dataset.name != "demo":
        from hist_cache.download import download

        download(list(dataset.ids), data_root)
        return 0
    if dataset.name == "demo":
        data_root = make_demo(data_root, options)
        if options.download:
            return 0
    return compute(options, dataset, data_root, cache_root)


def make_demo(data_root: Path, options: ExtractOptions) -> Path:
    """Return the folder of the demo dataset, which is generated on first use (in ./data without --data-root)."""
    from hist_cache.demo.slides import missing_slides, write_demo

    if options.data_root is None:
        data_root = data_root / "demo"
    if missing_slides(data_root):
        say(f"generating the demo dataset in {data_root}")
        write_demo(data_root)
    return data_root


def compute(options: ExtractOptions, dataset: Dataset, data_root: Path, cache_root: Path) -> int:
    """Compute what is missing of a dataset.

    Args:
        options: The command's options.
        dataset: The slides.
        data_root: Folder of the slides.
        cache_root: Folder of all caches.

    Returns:
        The exit code: 0 if everything is done, 1 if some slides failed.
    """
    from contextlib import closing

    from extract.identity import common_identity, folder_name
    from extract.plan import Request, mention_other_caches
    from hist_cache.cache import Cache, remember_last
    from hist_cache.cached_dataset import keep_dataset
    from hist_cache.metadata import HEST_ID
    from hist_cache.slides import is_absent
    from hist_cache.sources import HestFolder
    from hist_cache.texts import first_names

    sizes = parse_sizes(options.neighbors)
    absent = [slide for slide in dataset.ids if is_absent(data_root, slide)]
    slides = [slide for slide in dataset.ids if slide not in absent]
    if not slides:
        fetch = "fetch them with --download" if HEST_ID.fullmatch(absent[0]) else "is --data-root right?"
        raise InputError(f"{data_root}: none of the slides of {dataset.name} ({first_names(absent)}); {fetch}")
    if absent:
        warn(
            f"{len(absent)} of the {len(dataset.ids)} slides of {dataset.name} are not in {data_root} "
            f"and left out: {first_names(absent)}"
        )

    encoder, pipeline = start_encoder(options, dataset)
    common = common_identity(encoder, pipeline.precision, options.min_spot_um)
    folder = cache_root / dataset.name / folder_name(encoder, common)
    mention_other_caches(folder, encoder.slug, common)
    request = Request(HestFolder(data_root, options.any_scale), sizes, options.min_spot_um, common)
    with closing(pipeline):
        failed = fill(options, request, slides, folder, encoder, pipeline)
    cache = Cache(folder)
    if cache.slides and not options.dry_run:
        remember_last(cache_root, cache)
        keep_dataset(cache_root, dataset.name)
        chosen = "" if encoder.lora is None else f"; hist-train --encoder {folder.name} takes it"
        say(f"{len(cache.slides)} slides in {folder}{chosen}")
    return report_failures(failed, options.debug)


def fill(
    options: ExtractOptions, request: Request, slides: list[str], folder: Path, encoder: Encoder, pipeline: Pipeline
) -> list[HistError]:
    """Complete a cache folder: first embeddings, then tokens if they are requested.

    Args:
        options: The command's options.
        request: What is to be computed.
        slides: IDs of the slides.
        folder: The cache folder.
        encoder: The encoder.
        pipeline: The encoder on its device.

    Returns:
        The errors of slides that failed.
    """
    from functools import partial

    from extract.embeddings import embed_slide
    from extract.loading import check_plan
    from extract.pipeline import crops_per_second
    from extract.plan import plan_extraction
    from extract.scheduler import run_plan
    from extract.tokens import announce_tokens, compute_tokens, plan_tokens
    from hist_cache.disk_room import check_room

    plan = plan_extraction(request, slides, folder)
    for error in plan.failed:
        warn(str(error))
    describe(plan, folder, encoder, request.sizes)
    needed = plan.crops * encoder.width * 2 + plan.largest_rewritten
    check_room(folder, needed, "embeddings", "make room, or give a --cache on a larger disk")
    tokens = None
    if options.tokens_at is not None:
        tokens = plan_tokens(request, encoder, options.tokens_at, [t.files.id for t in plan.tasks], folder)
        announce_tokens(tokens)
    if options.dry_run:
        failed = plan.failed + check_plan(plan, request)
        seconds = plan.crops / crops_per_second(pipeline)
        if tokens is not None:
            with tokens.pipeline(encoder, like=pipeline) as token_pipeline:
                seconds += tokens.plan.crops / crops_per_second(token_pipeline)
        say(f"would take about {duration(seconds)}, going by a timed batch")
        return failed

    details = {"device": str(pipeline.device), "weights": encoder.source}
    if options.lora is not None:
        details["adapter"] = str(Path(options.lora).resolve())
    with progress("extract", plan.crops, "crops") as meter:
        failed = run_plan(plan, request, partial(embed_slide, request, pipeline, meter), details)
    say_throughput(pipeline)
    if tokens is not None:
        with tokens.pipeline(encoder, like=pipeline) as token_pipeline:
            failed += compute_tokens(tokens, token_pipeline, details)
            say_throughput(token_pipeline)
    return plan.failed + failed


def say_throughput(pipeline: Pipeline) -> None:
    """Print how many crops a pipeline has encoded, and how fast."""
    clock = pipeline.clock
    if clock.crops:
        say(
            f"{clock.crops:,} crops in {duration(clock.seconds)}: {clock.crops / clock.seconds:,.1f} crops/s, "
            f"{clock.waiting_share:.0%} of the time waiting for pixels"
        )


def start_encoder(options: ExtractOptions, dataset: Dataset) -> tuple[Encoder, Pipeline]:
    """Load the encoder, with its adapter if there is one, onto the device, and print which."""
    import torch

    from extract.encoders.encoder import check_block
    from extract.encoders.registry import load_encoder
    from extract.pipeline import start_pipeline

    device = choose_device(options.device)
    weights = Path(options.weights) if options.weights else None
    if options.lora is not None:
        encoder = start_finetuned(options, Path(options.lora), weights)
    else:
        encoder = load_encoder(options.encoder or dataset.encoder, weights, options.random_weights)
    if options.tokens_at is not None:
        check_block(encoder, options.tokens_at)
    pipeline = start_pipeline(encoder, options.precision, device)
    cores = "" if device.type == "cuda" else f", {torch.get_num_threads()} cores"
    say(f"encoder {encoder.name} ({encoder.source}) in {pipeline.precision} on {device_name(device)}{cores}")
    return encoder, pipeline


def start_finetuned(options: ExtractOptions, run: Path, weights: Path | None) -> Encoder:
    """Load the encoder of a run of hist-train --finetune-lora, with its adapter merged into the weights.

    Args:
        options: The command's options; without --encoder, the encoder is the one that the adapter names.
        run: Folder of the run, of a fold or of an adapter.
        weights: The encoder's weights; otherwise they are searched for.
    """
    from extract.encoders.adapters import find_adapter, merge_adapter, read_owner
    from extract.encoders.registry import load_encoder

    folder = find_adapter(run)
    owner = read_owner(folder)
    random = options.random_weights or (options.encoder is None and weights is None and not owner.pretrained)
    encoder = merge_adapter(load_encoder(options.encoder or owner.encoder, weights, random), folder)
    say(f"encoder {encoder.name} with the adapter {folder} (digest {str(encoder.lora)[:12]}) merged into its weights")
    if encoder.adapter_slides is None:
        warn(
            f"{folder} does not say which slides it was trained on: hist-train refuses its cache without --allow-leak "
            "(give the run's own folder, or train the adapter again)"
        )
    return encoder


def describe(plan: ExtractionPlan, folder: Path, encoder: Encoder, sizes: tuple[int, ...]) -> None:
    """Print one line that says what the cache has and what is to be computed."""
    states = {"complete": 0, "add": 0, "new": 0}
    for task in plan.tasks:
        states[task.state] += 1
    todo = f"{states['new']} to extract" + (f", {states['add']} to add niches to" if states["add"] else "")
    say(
        f"{folder}: {states['complete']} slides complete, {todo}, {len(plan.failed)} failed: "
        f"{plan.crops:,} crops (spots and niches {','.join(map(str, sizes))}), {size(plan.crops * encoder.width * 2)}"
    )


def parse_sizes(text: str) -> tuple[int, ...]:
    """Read neighbourhood sizes: `6,18` -> (6, 18).

    Raises:
        InputError: The text has something else than 6, 18 and 36.
    """
    from hist_cache.lattice import RINGS

    try:
        sizes = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        sizes = ()
    if not sizes or not set(sizes) <= set(RINGS):
        raise InputError(f"--neighbors {text}: give any of 6, 18, 36, such as 6,18")
    return sizes


def report_failures(failed: list[HistError], debug: bool) -> int:
    """Print the errors of slides that failed, with tracebacks if asked for; returns the exit code."""
    if failed:
        warn(f"{len(failed)} slides failed:")
        for error in failed:
            if debug:
                traceback.print_exception(error)
            warn(f"  {error}")
    return int(bool(failed))
