"""What is to be computed: each slide's state in the cache, against what is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py

from extract.crops import niche_side_um
from extract.encoders import Encoder
from extract.images import Image, open_image
from hist_cache.cache import neighborhoods, read_fingerprint, slide_files
from hist_cache.console import say
from hist_cache.errors import HistError, SlideError
from hist_cache.fingerprint import Fingerprint, differences, file_digest, file_stamp, short_hash
from hist_cache.lattice import RINGS
from hist_cache.slides import SlideFiles, find_slide
from hist_cache.tokens import token_path

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


def common_identity(encoder: Encoder, precision: str, min_spot_um: float) -> dict[str, Any]:
    """The part of the fingerprint that all slides share; its hash names the cache folder."""
    return {
        "encoder": encoder.name,
        "weights": encoder.digest,
        "pretrained": encoder.pretrained,
        "lora": encoder.lora,
        "mean": list(encoder.mean),
        "std": list(encoder.std),
        "input_size": encoder.input_size,
        "resize": f"antialiased {encoder.interpolation}, uint8",
        "precision": precision,
        "spot_crop_um": "spot diameter" if not min_spot_um else f"spot diameter, at least {min_spot_um:g}",
        "niche_crop_um": "2 (m pitch + spot radius)",
    }


def folder_name(encoder: Encoder, common: dict[str, Any]) -> str:
    return f"{encoder.slug}-{short_hash(common)}"


def crop_sides_um(files: SlideFiles, sizes: tuple[int, ...], min_spot_um: float) -> dict[str, float]:
    """Crop name -> side in um: "spot" and each neighbourhood size."""
    sides = {"spot": max(files.spot_um, min_spot_um)}
    return sides | {str(k): niche_side_um(RINGS[k], files.pitch_um, files.spot_um) for k in sizes}


def slide_identity(
    files: SlideFiles, image: Image, known: Fingerprint | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The slide's own part of the fingerprint, and the file stamps that spare hashing it again.

    `known`: the fingerprint of an earlier cache file; its digests hold where size and time of a file are the same.
    """
    digests, stamps = {}, {}
    for key, path in (("image", files.image), ("table", files.table)):
        stamps[key] = file_stamp(path)
        if known is not None and known.provenance.get("stamps", {}).get(key) == stamps[key]:
            digests[key] = known.slide[key]
        else:
            digests[key] = file_digest(path)
    identity = {
        **digests,
        "um_per_px": files.um_per_px,
        "pitch_um": files.pitch_um,
        "spot_um": files.spot_um,
        "reader": image.reader,
    }
    return identity, stamps


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
