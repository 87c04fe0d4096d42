"""hist-extract --status and --verify: what the cache holds, slide by slide, and whether it is as it was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hist_cache.console import say, size, warn
from hist_cache.errors import HistError

if TYPE_CHECKING:
    from hist_cache.cache import Cache
    from hist_cache.datasets import Dataset


def show_caches(root: Path, dataset: Dataset, verify: bool) -> int:
    """List each cache of the dataset, slide by slide; with `verify` re-read them. 1 where something is wrong."""
    from hist_cache.cache import Cache, partial_files

    folders = sorted(f for f in (root / dataset.name).glob("*") if any(f.glob("*.h5")) or partial_files(f))
    if not folders:
        say(f"{root / dataset.name}: no cache")
        return 1 if verify else 0
    return max([show_cache(Cache(f), dataset, verify, partial_files(f)) for f in folders])


def show_cache(cache: Cache, dataset: Dataset, verify: bool, partial: list[Path]) -> int:
    from hist_cache.cache import verify_slide
    from hist_cache.token_files import stale_beside, token_files, verify_tokens

    def verify_both(path: Path) -> list[str]:
        return verify_tokens(path) + stale_beside(path)

    say(f"{cache.folder}")
    files = [cache.path(slide) for slide in cache.slides]
    tokens = token_files(cache.folder)
    sound = [show_file(path, verify_slide if verify else None) for path in files]
    sound += [show_file(path, verify_both if verify else None) for path in tokens]
    for path in partial:
        say(f"  {path.name}: being written, or left by a killed run (the next run makes it again)")
    missing = [s for s in dataset.ids if s not in cache.slides]
    say(
        f"  {len(files)} slides, {held(files)}"
        + (f"; {len(missing)} missing: {some(missing)}" if missing else "")
        + (f"; tokens {held(tokens)}" if tokens else "")
    )
    return int(not all(sound))


def show_file(path: Path, verify: Callable[[Path], list[str]] | None) -> bool:
    """One line for a file (`TINY1`, or `TINY1.tokens13`), one for each thing that is wrong; whether all is well."""
    from hist_cache.cache import neighborhoods, read_fingerprint

    try:
        wrong = verify(path) if verify else []
        sizes = ",".join(map(str, neighborhoods(path)))
        made = read_fingerprint(path).provenance.get("date", "?")
        say(f"  {path.stem}  niches {sizes}  {held([path])}  {made}" + ("  ok" if verify and not wrong else ""))
    except HistError as error:
        wrong = [str(error)]
    for problem in wrong:
        warn(f"{path.stem}: {path}: {problem}; delete the file and extract again")
    return not wrong


def held(files: list[Path]) -> str:
    """What files take on disk."""
    return size(sum(path.stat().st_size for path in files))


def some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
