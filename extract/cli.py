"""hist-extract: compute the embeddings of every spot and niche crop of a dataset and store them in HDF5 files."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from extract.options import ExtractOptions
from hist_cache.console import say, warn
from hist_cache.devices import choose_device, visible_gpus
from hist_cache.engine import Workers, open_engine
from hist_cache.errors import HistError, InputError
from hist_cache.options import folder_option, parse, run

if TYPE_CHECKING:
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
    from extract.chosen_encoder import ChosenEncoder, decide_place, log_encoder
    from extract.encoders.encoder import check_block
    from extract.extraction import Extraction
    from extract.identity import common_identity, folder_name
    from extract.plan import Request, mention_other_caches
    from extract.shared_precision import forget_decision, shared_precision
    from hist_cache.cache import Cache, remember_last
    from hist_cache.cached_dataset import keep_dataset
    from hist_cache.metadata import HEST_ID
    from hist_cache.slides import is_absent
    from hist_cache.sources import HestFolder
    from hist_cache.texts import first_names
    from hist_cache.values import PRECISIONS

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

    chosen = ChosenEncoder(options.encoder, dataset.encoder, options.weights, options.random_weights, options.lora)
    encoder = chosen.load()
    if options.tokens_at is not None:
        check_block(encoder, options.tokens_at)
    device = choose_device(options.device)
    with open_engine(options) as engine:
        jobs = options.jobs or max(1, len(visible_gpus(device)))
        workers = Workers(engine, engine.workers(len(slides), jobs), device, options.device)
        place = decide_place(options.device, options.precision, device, engine)
        commons = {p: common_identity(encoder, p, options.min_spot_um) for p in PRECISIONS}
        folders = {p: cache_root / dataset.name / folder_name(encoder, common) for p, common in commons.items()}
        if options.precision is None:
            place = place.in_precision(shared_precision(place.precision, folders, decide=not options.dry_run))
        common, folder = commons[place.precision], folders[place.precision]
        log_encoder(encoder, place, workers)
        mention_other_caches(folder, encoder.slug, common)
        source = HestFolder(data_root, options.any_scale)
        request = Request(source, sizes, options.min_spot_um, common, wait=not options.no_wait)
        extraction = Extraction(request, slides, folder, chosen, encoder, place, options.tokens_at)
        if options.dry_run:
            failed = extraction.check()
        elif workers.are_here:
            failed = extraction.run_here()
        else:
            failed = extraction.run_with(workers.executor())
    cache = Cache(folder)
    if not options.dry_run:
        forget_decision(folders)
    if cache.slides and not options.dry_run:
        remember_last(cache_root, cache)
        keep_dataset(cache_root, dataset.name)
        advice = "" if encoder.lora is None else f"; hist-train --encoder {folder.name} takes it"
        say(f"{len(cache.slides)} slides in {folder}{advice}")
    return report_failures(failed, options.debug)


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
