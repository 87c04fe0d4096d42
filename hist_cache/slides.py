"""A slide on disk in the HEST-1k layout: `st/ID.h5ad`, `wsis/ID.tif`, `metadata/ID.json`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hist_cache.errors import InputError, SlideError
from hist_cache.fingerprint import METADATA, Fingerprint, file_stamp
from hist_cache.metadata import missing_file, read_metadata, read_patient, read_scale, unusual_size

TABLE_FOLDERS = ("st", "adata")  # in HEST-1k and in HEST-bench
IMAGE_SUFFIXES = (".tif", ".tiff", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".czi", ".jpg", ".jpeg", ".png")
OME_TIFF_SUFFIXES = (".ome.tif", ".ome.tiff")
ZARR_SUFFIXES = (".ome.zarr", ".zarr")  # of folders
DICOM_SUFFIX = ".dcm"
IMAGE_ENDINGS = (*IMAGE_SUFFIXES, *OME_TIFF_SUFFIXES, *ZARR_SUFFIXES, DICOM_SUFFIX, "")


@dataclass(frozen=True)
class SlideFiles:
    """The files of a slide, and what its metadata say.

    Attributes:
        id: Slide ID.
        image: The whole-slide image.
        table: The h5ad file with counts and spot positions.
        metadata: All metadata, by name.
        um_per_px: Pixel size of level 0.
        pitch_um: Distance between the centres of neighbouring spots.
        spot_um: Diameter of a spot.
        patient: Name of the patient; None where it is not known.
        pooled: Whether pitch and diameter are those of HEST's squares, and not stated in the metadata.
        metadata_stamp: Size and time of the slide's own file of metadata; None where it has none.
    """

    id: str
    image: Path
    table: Path
    metadata: dict[str, Any]
    um_per_px: float
    pitch_um: float
    spot_um: float
    patient: str | None
    pooled: bool = False
    metadata_stamp: tuple[int, int] | None = None

    @property
    def digested(self) -> dict[str, Path]:
        """The files whose digests are part of what a cache file was made from, by kind."""
        return {"image": self.image, "table": self.table}

    @property
    def facts(self) -> dict[str, Any]:
        """What else a cache file of the slide was made from, besides those files and the sizes."""
        return {}


def table_folder(root: Path) -> Path:
    """Return the folder of h5ad files below `root`.

    Raises:
        InputError: `root` does not have the layout of HEST.
    """
    for name in TABLE_FOLDERS:
        if os.path.isdir(f"{root}/{name}") and os.path.isdir(f"{root}/wsis"):
            return root / name
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the HEST data with --data-root or $HIST_DATA")
    raise InputError(
        f"{root}: not a HEST folder (no st/ and wsis/ in it); --data-root names the folder that holds them"
    )


def slides_on_disk(root: Path) -> list[str]:
    """List the IDs of all slides that have a table below `root`, sorted."""
    return sorted(p.stem for p in table_folder(root).glob("*.h5ad"))


def is_absent(root: Path, slide: str) -> bool:
    """Tell whether `root` has no file of the slide, so that the slide is not downloaded rather than damaged."""
    files = (table_folder(root) / f"{slide}.h5ad", metadata_file(root, slide))
    return not any(file.exists() for file in files) and image_of(root, slide) is None


def metadata_file(root: Path, slide: str) -> Path:
    """Return the file of a slide's own metadata, which may not be there."""
    return root / "metadata" / f"{slide}.json"


def image_of(root: Path, slide: str) -> Path | None:
    """Return the image of a slide; None where there is none. It may be a folder: of an OME-Zarr, or of DICOM files."""
    start = f"{root}/wsis/{slide}"  # a path for each ending would take most of the time in which slides are planned
    return next((Path(start + ending) for ending in IMAGE_ENDINGS if os.path.exists(start + ending)), None)


def image_name(path: Path) -> str:
    """Return the name of the slide whose image this is: the file's without its suffix, and without `.ome`."""
    stem = path.stem
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def find_slide(root: Path, slide: str, any_scale: bool = False) -> SlideFiles:
    """Find the files of a slide and read its metadata.

    Args:
        root: Folder of the slides.
        slide: ID of the slide.
        any_scale: Accept pixel and spot sizes that no usual slide has.

    Raises:
        InputError: `root` does not have the layout of HEST.
        SlideError: A file is missing or no plain file (of the image, or folder), or the metadata have no pixel size or
            spot size.
    """
    table = table_folder(root) / f"{slide}.h5ad"
    if not table.exists():
        raise missing_file(slide, table, "no such file")
    image = image_of(root, slide)
    if image is None:
        raise missing_file(slide, root / "wsis" / f"{slide}{IMAGE_ENDINGS[0]}", "no image")
    own = metadata_file(root, slide)
    for file in (table, image, own):
        may_be_folder = file == image and not file.name.lower().endswith(IMAGE_SUFFIXES)
        if not file.is_file() and file.exists() and not (may_be_folder and file.is_dir()):  # a pipe has no end
            raise SlideError(slide, file, "not a plain file", "put the slide's own file there")
    stamp = file_stamp(own) if own.exists() else None  # before it is read
    file, metadata = read_metadata(root, slide)
    scale = read_scale(slide, file, metadata, any_scale)
    patient = read_patient(slide, file, metadata)
    sizes = (scale.um_per_px, scale.pitch_um, scale.spot_um)
    return SlideFiles(slide, image, table, metadata, *sizes, patient, scale.pooled, stamp)


def unchanged_slide(root: Path, slide: str, earlier: Fingerprint, any_scale: bool = False) -> SlideFiles | None:
    """Find the files of a slide without opening one, if the metadata are those that an earlier file was made from.

    Args:
        root: Folder of the slides.
        slide: ID of the slide.
        earlier: What that file was made from.
        any_scale: Accept pixel and spot sizes that no usual slide has.

    Returns:
        The slide, without its metadata and its patient; None where it must be found by `find_slide`.
    """
    names = ("um_per_px", "pitch_um", "spot_um")
    sizes = tuple(earlier.slide[name] for name in names if isinstance(earlier.slide.get(name), float))
    if len(sizes) != len(names) or not (any_scale or unusual_size(*sizes) is None):
        return None
    try:
        stamp = file_stamp(metadata_file(root, slide))
    except OSError:
        return None
    image, table = image_of(root, slide), table_folder(root) / f"{slide}.h5ad"
    if image is None or not os.path.isfile(table) or earlier.stamps.get(METADATA) != list(stamp):
        return None
    um_per_px, pitch_um, spot_um = sizes
    return SlideFiles(slide, image, table, {}, um_per_px, pitch_um, spot_um, None, metadata_stamp=stamp)
