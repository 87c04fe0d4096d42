"""hist-extract --status and --verify: what the cache holds of each slide, and whether the files are still right."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from extract.leftovers import describe_partial
from hist_cache.cache import Cache, partial_files
from hist_cache.console import size
from hist_cache.datasets import Dataset
from hist_cache.errors import HistError
from hist_cache.slide_file import CacheHeader, read_header
from hist_cache.texts import first_names
from hist_cache.token_files import stale_reasons, token_files
from hist_cache.verify import problem_of, verify_slide, verify_tokens

log = logging.getLogger(__name__)


def show_caches(root: Path, dataset: Dataset, verify: bool) -> int:
    """Log what each cache of a dataset holds.

    Args:
        root: Folder of all caches.
        dataset: The dataset.
        verify: Whether to read all files again and compare the digests.

    Returns:
        The exit code: 1 if something is wrong, otherwise 0.
    """
    folders = sorted(f for f in (root / dataset.name).glob("*") if any(f.glob("*.h5")) or partial_files(f))
    if not folders:
        log.info(f"{root / dataset.name}: no cache")
        return 1 if verify else 0
    return max([show_cache(Cache(f), dataset, verify, partial_files(f)) for f in folders])


def show_cache(cache: Cache, dataset: Dataset, verify: bool, partial: list[Path]) -> int:
    """Log what one cache holds.

    Args:
        cache: The cache.
        dataset: Its dataset, whose missing slides are named.
        verify: Whether to read all files again and compare the digests.
        partial: Files that are incomplete.

    Returns:
        The exit code: 1 if something is wrong, otherwise 0.
    """
    log.info(f"{cache.folder}")
    files = [cache.path(slide) for slide in cache.slides]
    tokens = token_files(cache.folder)
    read = read_header if verify else cache.headers.header
    sound = [show_file(path, read, verify_slide if verify else None) for path in files]
    sound += [show_file(path, read, _token_problems if verify else None) for path in tokens]
    for path in partial:
        log.info(f"  {path.name}: {describe_partial(path)}")
    missing = sorted(set(dataset.ids) - {path.stem for path in files}, key=dataset.ids.index)
    log.info(
        f"  {len(files)} slides, {disk_size(files)}"
        + (f"; {len(missing)} missing: {first_names(missing)}" if missing else "")
        + (f"; tokens {disk_size(tokens)}" if tokens else "")
    )
    return int(not all(sound))


def _token_problems(path: Path) -> list[str]:
    return verify_tokens(path) + stale_reasons(path)


def show_file(
    path: Path, read: Callable[[Path], CacheHeader], verify: Callable[[Path], list[str]] | None = None
) -> bool:
    """Log one line for a file (`TINY1`, or `TINY1.tokens13`), and one for each thing that is wrong with it.

    Args:
        path: The file.
        read: Reads its header.
        verify: Returns what is wrong with the file; None to check only that it can be read.

    Returns:
        Whether nothing is wrong.
    """
    try:
        problems = verify(path) if verify else []
        header = read(path)
        sizes, date = ",".join(map(str, header.sizes)), header.fingerprint.provenance.get("date", "?")
        mark = "  ok" if verify and not problems else ""
        log.info(f"  {path.stem}  niches {sizes}  {disk_size([path])}  {date}{mark}")
    except HistError as error:
        problems = [problem_of(error, path)]
    for problem in problems:
        log.warning(f"{path.stem}: {path}: {problem}; delete the file and extract again")
    return not problems


def disk_size(files: list[Path]) -> str:
    """Return the size of files on disk, as people read it: `1.5 GB`."""
    return size(sum(path.stat().st_size for path in files))
