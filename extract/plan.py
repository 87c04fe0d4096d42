"""What is to be computed: what the cache has of each slide, compared with what is requested."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from extract.identity import crop_sides_um, slide_identity, unchanged_identity
from extract.slides.readers import open_image
from hist_cache.cache import slide_files
from hist_cache.console import size
from hist_cache.errors import DamagedCacheError, HistError, SlideError, slide_failure
from hist_cache.fingerprint import differences
from hist_cache.header_index import HeaderIndex
from hist_cache.memory import free_memory
from hist_cache.slide_file import CacheHeader, read_fingerprint, read_header
from hist_cache.slides import SlideFiles
from hist_cache.sources import SlideSource
from hist_cache.token_files import token_path

log = logging.getLogger(__name__)

CROPS_AT_ONCE = 4  # of the largest crops, those that are about in memory together
CacheState = Literal["complete", "add", "new"]  # "add": the file is there, but lacks niches of some size


@dataclass(frozen=True)
class Request:
    """What hist-extract is to compute, the same for all slides."""

    slides: SlideSource
    """Where the slides come from."""
    sizes: tuple[int, ...]
    """Neighbourhood sizes."""
    min_spot_um: float
    """Spot crops are at least this wide, um."""
    common: dict[str, Any]
    """The common part of the fingerprint."""
    tokens_at: int | None = None
    """The block whose tokens are computed; None to compute embeddings."""
    wait: bool = True
    """Whether slides that other commands work on are waited for."""

    def path(self, folder: Path, slide: str) -> Path:
        """Return the path of a slide's file in a cache folder."""
        return folder / f"{slide}.h5" if self.tokens_at is None else token_path(folder, slide, self.tokens_at)


@dataclass(frozen=True)
class Task:
    """One slide, and what is missing of it."""

    files: SlideFiles
    path: Path
    """The cache file."""
    state: CacheState
    missing: tuple[int, ...]
    """Neighbourhood sizes to compute."""
    spots: int
    """Number of spots."""
    damage: str = ""
    """Why the file that is there is made again."""

    @property
    def crops(self) -> int:
        """Number of crops to encode."""
        return self.spots * (len(self.missing) + (self.state == "new"))


@dataclass
class ExtractionPlan:
    """The tasks of a request."""

    headers: HeaderIndex
    """What the files of the cache folder state."""
    tasks: list[Task] = field(default_factory=list)
    failed: list[HistError] = field(default_factory=list)
    """Errors of slides that cannot be used."""
    crops: int = 0
    """Number of crops to encode in all tasks."""

    @property
    def largest_rewritten(self) -> int:
        """Bytes of the largest file that niches are added to: while it is written anew, the old one is there too."""
        return max((task.path.stat().st_size for task in self.tasks if task.state == "add"), default=0)


def plan_slide(request: Request, slide: str, headers: HeaderIndex, known: SlideFiles | None = None) -> Task:
    """Compare a slide's cache file, if there is one, with the request.

    Args:
        request: What is to be computed.
        slide: ID of the slide.
        headers: What the files of the cache folder state.
        known: The slide's files, where they have been found before.

    Raises:
        SlideError: The slide cannot be used, or its cache file was made from other files or in another way.
    """
    path = request.path(headers.file.parent, slide)
    header, damage = _read_earlier(path, headers.header)
    files, identity = _find(request, slide, header, known)
    if header is None:
        check_crop_memory(files, request.sizes, request.min_spot_um)
        return Task(files, path, "new", request.sizes, request.slides.count(files), damage)
    cached = header.fingerprint
    if identity is None:
        image = open_image(slide, files.image)
        try:
            identity, _ = slide_identity(files, image, cached)
        finally:
            image.close()
    if different := differences(cached.common, request.common) + differences(cached.slide, identity):
        raise SlideError(
            slide,
            path,
            f"stale: {'; '.join(different)}",
            "delete it to extract again, or give another --cache",
        )
    missing = tuple(k for k in request.sizes if k not in header.sizes)
    if missing:
        check_crop_memory(files, missing, request.min_spot_um)
    return Task(files, path, "add" if missing else "complete", missing, header.spots)


def _find(
    request: Request, slide: str, header: CacheHeader | None, known: SlideFiles | None
) -> tuple[SlideFiles, dict[str, Any] | None]:
    """Find a slide's files, and its part of the fingerprint where that can be told without opening its image.

    No file is opened where the cache file has all sizes and nothing has changed since it was made.
    """
    if header is None:
        return known or request.slides.find(slide), None
    if set(request.sizes) <= set(header.sizes):
        files = known or request.slides.unchanged(slide, header.fingerprint)
        if files and (identity := unchanged_identity(files, header.fingerprint)):
            return files, identity
    files = known or request.slides.find(slide)
    return files, unchanged_identity(files, header.fingerprint)


def check_crop_memory(files: SlideFiles, sizes: tuple[int, ...], min_spot_um: float) -> None:
    """Check that a slide's crops fit into memory, before any is taken for them.

    Args:
        files: The slide.
        sizes: Neighbourhood sizes: any of 6, 18, 36.
        min_spot_um: Spot crops are at least this wide, um.

    Raises:
        SlideError: They do not.
    """
    side_um = max(crop_sides_um(files, sizes, min_spot_um).values())
    side_px = side_um / files.um_per_px
    needed, free = CROPS_AT_ONCE * 3 * side_px * side_px, free_memory()
    if needed > free:
        raise SlideError(
            files.id,
            files.image,
            f"crops of {side_um:g} um are {side_px:,.0f} px wide at {files.um_per_px:g} um per pixel; "
            f"they need {size(needed)} of memory, {size(free)} are free",
            "check pixel size, spot_diameter and inter_spot_dist in its metadata",
        )


def earlier_header(path: Path) -> CacheHeader | None:
    """Read what an earlier file states; None where there is none, or one so damaged that it is made again.

    Raises:
        HistError: The file cannot be opened, has another format or is another slide's.
    """
    return _read_earlier(path, read_header)[0]


def _read_earlier(path: Path, read: Callable[[Path], CacheHeader]) -> tuple[CacheHeader | None, str]:
    """Return what an earlier file states, and how it is damaged."""
    if not path.exists():
        return None, ""
    try:
        return read(path), ""
    except DamagedCacheError as error:
        return None, error.problem


def plan_extraction(request: Request, slides: list[str], folder: Path) -> ExtractionPlan:
    """Plan all slides; the errors of those that cannot be used are collected in the plan.

    Args:
        request: What is to be computed.
        slides: IDs of the slides.
        folder: The cache folder.
    """
    plan = ExtractionPlan(HeaderIndex(folder))
    for slide in slides:
        try:
            task = plan_slide(request, slide, plan.headers)
            if task.damage:
                log.warning(f"{task.path}: {task.damage}; it is computed again")
            plan.tasks.append(task)
        except Exception as error:  # whatever is raised for one slide, the others are planned
            plan.failed.append(slide_failure(slide, request.path(folder, slide), error))
    plan.crops = sum(task.crops for task in plan.tasks)
    plan.headers.save()
    return plan


def mention_other_caches(folder: Path, slug: str, common: dict[str, Any]) -> None:
    """Log which other caches of the same encoder are not used, and why.

    Args:
        folder: The cache folder that is used.
        slug: The encoder's name in folder names.
        common: The common part of the fingerprint that is requested.
    """
    for other in sorted(folder.parent.glob(f"{slug}-????????")):
        files = slide_files(other)
        if other == folder or not files:
            continue
        try:
            different = differences(read_fingerprint(files[0]).common, common)
        except HistError as error:
            different = [str(error)]
        log.info(f"not used: {other} ({len(files)} slides) was made otherwise: {'; '.join(different)}")
