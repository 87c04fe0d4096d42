"""A slide on disk in the HEST-1k layout: `st/ID.h5ad`, `wsis/ID.tif`, `metadata/ID.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hist_cache.errors import InputError, SlideError
from hist_cache.metadata import missing_file, read_metadata, read_patient, read_scale

TABLE_FOLDERS = ("st", "adata")  # in HEST-1k and in HEST-bench
IMAGE_SUFFIXES = (".tif", ".tiff", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".czi", ".jpg", ".jpeg", ".png")
OME_TIFF_SUFFIXES = (".ome.tif", ".ome.tiff")
ZARR_SUFFIXES = (".ome.zarr", ".zarr")  # of folders
DICOM_SUFFIX = ".dcm"


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
        if (root / name).is_dir() and (root / "wsis").is_dir():
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
    files = [table_folder(root) / f"{slide}.h5ad", root / "metadata" / f"{slide}.json"]
    return not any(file.exists() for file in [*files, *image_places(root, slide)])


def image_places(root: Path, slide: str) -> list[Path]:
    """List what the image of a slide may be called; the last one is a folder of DICOM files."""
    suffixes = (*IMAGE_SUFFIXES, *OME_TIFF_SUFFIXES, *ZARR_SUFFIXES, DICOM_SUFFIX, "")
    return [root / "wsis" / f"{slide}{suffix}" for suffix in suffixes]


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
    images = image_places(root, slide)
    image = next((p for p in images if p.exists()), None)
    if image is None:
        raise missing_file(slide, images[0], "no image")
    for file in (table, image, root / "metadata" / f"{slide}.json"):
        may_be_folder = file == image and not file.name.lower().endswith(IMAGE_SUFFIXES)
        if file.exists() and not file.is_file() and not (may_be_folder and file.is_dir()):  # a pipe has no end
            raise SlideError(slide, file, "not a plain file", "put the slide's own file there")
    file, metadata = read_metadata(root, slide)
    scale = read_scale(slide, file, metadata, any_scale)
    patient = read_patient(slide, file, metadata)
    sizes = (scale.um_per_px, scale.pitch_um, scale.spot_um)
    return SlideFiles(slide, image, table, metadata, *sizes, patient, scale.pooled)
