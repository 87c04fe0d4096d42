"""The cache: folders with an HDF5 file for each slide, and which of them is opened (docs/cache-format.md).

A file is `<cache>/<dataset>/<encoder>-<8 hex digits of the fingerprint>/<slide>.h5` (`hist_cache.slide_file`). It gets
this name when it is complete. The same folder may have `<slide>.tokens<block>.h5` (`hist_cache.token_files`), which has
the same fingerprint and is not a slide of its own.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hist_cache.cache_file import TOKEN_FILE
from hist_cache.cached_slide import CachedSlide
from hist_cache.datasets import check_dataset_name
from hist_cache.errors import DamagedCacheError, HistError, InputError, StaleCacheError, WriteError
from hist_cache.files import PARTIAL, write_json
from hist_cache.fingerprint import Fingerprint, differences, encoder_slug, identity_hash, is_tuned, wrong_facts
from hist_cache.header_index import HeaderIndex
from hist_cache.slide_file import read_fingerprint, read_slide
from hist_cache.texts import did_you_mean

log = logging.getLogger(__name__)

LAST = "last.json"  # name of the file that says which dataset was extracted last


@dataclass(frozen=True)
class Cache:
    """The cache files of one dataset and encoder, as found by `open_cache`.

    Attributes:
        folder: The folder of the files.
    """

    folder: Path

    def __repr__(self) -> str:
        try:
            return f"{_describe(self)}\n  {self.folder}"
        except (HistError, KeyError, TypeError, ValueError):
            return f"Cache({str(self.folder)!r}), which cannot be read"

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.folder.parent.name

    @property
    def slides(self) -> list[str]:
        """IDs of the complete slides, sorted."""
        return [p.stem for p in slide_files(self.folder)]

    @cached_property
    def headers(self) -> HeaderIndex:
        """What the files state besides their arrays."""
        return HeaderIndex(self.folder)

    def __reduce__(self) -> tuple[type[Cache], tuple[Path]]:
        """Go to another process without what was read here."""
        return Cache, (self.folder,)

    def path(self, slide: str) -> Path:
        """Return the cache file of a slide, which may not exist."""
        return self.folder / f"{slide}.h5"

    def read(self, slide: str, sizes: list[int] | None = None) -> CachedSlide:
        """Read a slide with the given neighbourhood sizes (see `read_slide`)."""
        return read_slide(self.path(slide), sizes)

    def fingerprint(self) -> Fingerprint:
        """Return the fingerprint of the first slide, whose common part is the same for all slides.

        Raises:
            InputError: The folder has no cache files.
            StaleCacheError: A file was made in another way than the rest, or does not fit the name of the folder.
            DamagedCacheError: A file is damaged, or does not state what it was made from.
        """
        first: Fingerprint | None = None
        for slide in self.slides:
            fingerprint = self.headers.header(self.path(slide)).fingerprint
            if first is not None and fingerprint.common is first.common:  # of the index, which has it once
                continue
            if wrong := wrong_facts(fingerprint.common):
                raise DamagedCacheError(self.path(slide), f"its fingerprint does not state {', '.join(wrong)}")
            first = first or fingerprint
            if changes := differences(first.common, fingerprint.common):
                raise StaleCacheError(f"{self.path(slide)}: made otherwise than the rest: {'; '.join(changes)}")
        if first is None:
            raise InputError(f"{self.folder}: no cache files; run hist-extract")
        self.headers.save()
        identity = identity_hash(first.common)
        if not self.folder.name.endswith(identity):
            raise StaleCacheError(
                f"{self.folder}: its files were made as {identity}; was the folder renamed, or a file copied in?"
            )
        return first


def _describe(cache: Cache) -> str:
    """A cache in one line: whose embeddings, and of how much."""
    headers = [cache.headers.header(cache.path(slide)) for slide in cache.slides]
    common = headers[0].fingerprint.common if headers else {"encoder": "no slides", "precision": "-"}
    sizes = sorted(set.intersection(*(set(header.sizes) for header in headers))) if headers else []
    return (
        f"Cache of {cache.dataset}: {common['encoder']} ({common['precision']}), {len(headers)} slides, "
        f"{sum(header.spots for header in headers):,} spots, niches of {', '.join(map(str, sizes)) or 'no size'}"
    )


def open_cache(path: str | Path, dataset: str | None = None, encoder: str | None = None) -> Cache:
    """Open a cache.

    Args:
        path: The folder of one encoder, or the root of the cache.
        dataset: Name of the dataset in the root; None means the one extracted last.
        encoder: Name of the encoder, or of its folder; None means the only one, or the one extracted last. A cache of a
            fine-tuned encoder is opened by the name of its folder only.

    Raises:
        InputError: There is no such cache, or there are several and the choice is not clear.
    """
    path = Path(path)
    if slide_files(path):
        folder = path.resolve() if len(path.parents) < 2 or ".." in path.parts else path
        if not folder.parent.name:
            raise InputError(f"{path}: the folder above it names the dataset, so it must be in one")
        return Cache(folder)
    dataset = check_dataset_name(dataset or last_dataset(path))
    folders = cache_folders(path, dataset)
    if encoder is not None:
        if exact := [f for f in folders if f.name == encoder]:
            return Cache(exact[0])
        folders = [f for f in folders if f.name.rsplit("-", 1)[0] in (encoder, encoder_slug(encoder))]
    if not folders:
        what = f"{dataset} with {encoder}" if encoder else dataset
        there = cache_folders(path, dataset)
        known = [f.name.rsplit("-", 1)[0] for f in there] if there else [f.name for f in path.glob("[!.]*/")]
        near = did_you_mean(encoder if there and encoder else dataset, known)
        raise InputError(f"{path}: no cache of {what}{near}; run hist-extract --dataset {dataset}")
    plain = [f for f in folders if not has_adapter(f)]
    if not plain:
        names = ", ".join(f.name for f in folders)
        raise InputError(
            f"{path / dataset}: only caches of encoders that were fine-tuned ({names}); choose one with --encoder, by "
            "the name of its folder"
        )
    last = read_last(path)
    if len(plain) > 1 and last.get("dataset") == dataset:
        plain = [f for f in plain if f.name == last.get("folder")] or plain
    if len(plain) > 1:
        names = ", ".join(f.name for f in plain)
        raise InputError(f"{path / dataset}: several caches ({names}); choose one with --encoder")
    return Cache(plain[0])


def has_adapter(folder: Path) -> bool:
    """Whether a cache folder holds embeddings of an encoder with an adapter; one that cannot be read counts as not."""
    try:
        return is_tuned(read_fingerprint(slide_files(folder)[0]).common)
    except (HistError, ValueError, KeyError):
        return False


def slide_files(folder: Path) -> list[Path]:
    """List the files of complete slides, without token files, sorted by slide."""
    return sorted((p for p in folder.glob("*.h5") if not TOKEN_FILE.fullmatch(p.name)), key=lambda p: p.stem)


def cache_folders(root: Path, dataset: str) -> list[Path]:
    """List the cache folders of a dataset that have at least one complete slide, sorted."""
    return sorted(f for f in (root / dataset).glob("*") if f.is_dir() and slide_files(f))


def read_last(root: Path) -> dict[str, str]:
    """Read the dataset and the folder that were extracted last; an empty dict if there are none."""
    try:
        last = json.loads((root / LAST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in last.items() if isinstance(v, str)} if isinstance(last, dict) else {}


def last_dataset(root: Path) -> str:
    """Return the dataset that was extracted last.

    Raises:
        InputError: Nothing was extracted to this root.
    """
    if name := read_last(root).get("dataset"):
        return name
    raise InputError(f"{root}: nothing extracted here yet; run hist-extract --dataset NAME first, or give --cache")


def remember_last(root: Path, cache: Cache) -> None:
    """Write which dataset and folder were extracted last, for `read_last`, unless it says so already.

    A cache of a fine-tuned encoder does not become what is opened by default; where there is nothing else, its dataset
    does. Where nothing can be written, the cache is complete all the same.
    """
    before = read_last(root)
    last = {"dataset": cache.dataset, "folder": cache.folder.name}
    if has_adapter(cache.folder):
        last = before or {"dataset": cache.dataset}
    if last == before:
        return
    try:
        write_json(root / LAST, last)
    except WriteError as error:
        log.warning(f"{root}: {error.reason}, so hist-train needs --dataset {cache.dataset} to find this cache")


def partial_files(folder: Path) -> list[Path]:
    """List the files that are not complete, because their extraction is still running or was killed."""
    return sorted(folder.glob(f"*{PARTIAL}"))
