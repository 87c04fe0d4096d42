"""What is to be computed: each slide's state in the cache, against what is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py

from extract.identity import slide_identity
from extract.slides.readers import open_image
from hist_cache.cache import neighborhoods, read_fingerprint, slide_files
from hist_cache.console import say
from hist_cache.errors import HistError, SlideError
from hist_cache.fingerprint import differences
from hist_cache.slides import SlideFiles, find_slide
from hist_cache.token_files import token_path

State = Literal["complete", "add", "new"]


@dataclass(frozen=True)
class Request:
    """What a run of hist-extract is asked for, the same for all slides."""

    data_root: Path
    sizes: tuple[int, ...]  # neighbourhood sizes
    min_spot_um: float  # spot crops are never smaller than this
    common: dict[str, Any]  # fingerprint's common part
    tokens_at: int | None = None  # block whose tokens are to be computed; None: the embeddings

    def path(self, folder: Path, slide: str) -> Path:
        """The file that is asked for."""
        return folder / f"{slide}.h5" if self.tokens_at is None else token_path(folder, slide, self.tokens_at)


@dataclass(frozen=True)
class Task:
    """One slide: its files, its state and the neighbourhood sizes that are missing."""

    files: SlideFiles
    path: Path  # the cache file
    state: State
    missing: tuple[int, ...]
    spots: int

    @property
    def crops(self) -> int:
        """Crops to encode."""
        return self.spots * (len(self.missing) + (self.state == "new"))


@dataclass
class Plan:
    tasks: list[Task] = field(default_factory=list)
    failed: list[HistError] = field(default_factory=list)
    crops: int = 0


def count_spots(files: SlideFiles) -> int:
    """Spots in an h5ad, from its header alone."""
    try:
        with h5py.File(files.table, "r", locking=False) as file:
            x = file["X"]
            return int(x.attrs["shape"][0] if "shape" in x.attrs else x.shape[0])
    except (OSError, KeyError) as error:
        raise SlideError(files.id, files.table, f"cannot be read ({error})", "copy or download it again") from None


def plan_slide(request: Request, slide: str, folder: Path) -> Task:
    """Compare a slide's cache file, if any, with the request; raises where it is stale or the slide is unusable."""
    files = find_slide(request.data_root, slide)
    path = request.path(folder, slide)
    if not path.exists():
        return Task(files, path, "new", request.sizes, count_spots(files))
    known = read_fingerprint(path)
    image = open_image(slide, files.image)
    try:
        identity, _ = slide_identity(files, image, known)
    finally:
        image.close()
    if different := differences(known.common, request.common) + differences(known.slide, identity):
        raise SlideError(
            slide,
            path,
            f"stale: {'; '.join(different)}",
            "delete it to extract again, or give another --cache",
        )
    missing = tuple(k for k in request.sizes if k not in neighborhoods(path))
    return Task(files, path, "add" if missing else "complete", missing, count_spots(files))


def make_plan(request: Request, slides: list[str], folder: Path) -> Plan:
    plan = Plan()
    for slide in slides:
        try:
            plan.tasks.append(plan_slide(request, slide, folder))
        except HistError as error:
            plan.failed.append(error)
    plan.crops = sum(task.crops for task in plan.tasks)
    return plan


def mention_other_caches(folder: Path, slug: str, common: dict[str, Any]) -> None:
    """Say of caches of the same encoder that are not used, and why."""
    for other in sorted(folder.parent.glob(f"{slug}-????????")):
        files = slide_files(other)
        if other == folder or not files:
            continue
        try:
            different = differences(read_fingerprint(files[0]).common, common)
        except HistError as error:
            different = [str(error)]
        say(f"not used: {other} ({len(files)} slides) was made otherwise: {'; '.join(different)}")
