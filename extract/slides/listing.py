"""Which slides lie in a folder, and what they are called."""

from __future__ import annotations

from pathlib import Path

from extract.slides.dicom_series import largest_file
from extract.slides.image import ImageError
from hist_cache.errors import InputError
from hist_cache.slides import DICOM_SUFFIX, IMAGE_SUFFIXES, ZARR_SUFFIXES, image_name
from hist_cache.texts import first_names

WSI_SUFFIXES = (*IMAGE_SUFFIXES, ".svslide", *ZARR_SUFFIXES[1:], DICOM_SUFFIX)
INDEX_SUFFIX = ".vms"  # of Hamamatsu, whose pixels are JPEG files beside it


def slide_images(path: Path) -> list[Path]:
    """List the slides of a folder, sorted by name, or the one file (or folder, of OME-Zarr).

    Folders in it are not searched (those beside a .mrxs file are parts of that slide), except for OME-Zarr and those
    with DICOM files: each is a slide. Of a DICOM slide, the largest file is named. Hidden files are left out.

    Args:
        path: A folder, or an image file.

    Raises:
        InputError: There is no such file, no slide in the folder, or two slides have one name.
    """
    if path.is_file() or _is_zarr(path):
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; give slides with --wsi")
    files = [file for file in sorted(path.iterdir()) if not file.name.startswith(".")]
    plain = [file for file in files if file.suffix.lower() in WSI_SUFFIXES and file.suffix.lower() != DICOM_SUFFIX]
    indexed = tuple(file.stem for file in plain if file.suffix.lower() == INDEX_SUFFIX)
    images = [file for file in plain if not (file.suffix.lower() == ".jpg" and file.name.startswith(indexed))]
    images = [file for file in images if file.is_file() or _is_zarr(file)]
    for folder in (path, *(file for file in files if file.is_dir() and file not in images)):
        images += _dicom_slide(folder)
    if not images:
        raise InputError(f"{path}: no slide in it ({first_names(WSI_SUFFIXES, len(WSI_SUFFIXES))})")
    by_name: dict[str, Path] = {}
    for image in images:
        if (other := by_name.setdefault(slide_name(image), image)) != image:
            raise InputError(f"{image}: has the name of {other}; rename one, or give the slides one by one")
    return [by_name[name] for name in sorted(by_name)]


def slide_name(path: Path) -> str:
    """Return the name of a slide: its file's without the suffix, or that of the folder in which its DICOM files lie."""
    return path.absolute().parent.name if path.suffix.lower() == DICOM_SUFFIX else image_name(path)


def _is_zarr(path: Path) -> bool:
    return path.suffix.lower() in ZARR_SUFFIXES and path.is_dir()


def _dicom_slide(folder: Path) -> list[Path]:
    """Return the largest DICOM file of a folder; nothing where it has none."""
    try:
        file = largest_file(folder)
    except ImageError as error:
        raise InputError(f"{folder}: {error.problem}; {error.advice}") from None
    return [file] if file else []
