"""Which slides lie in a folder, and what they are called."""

from __future__ import annotations

from pathlib import Path

from extract.slides.dicom_series import series_uid
from hist_cache.errors import InputError
from hist_cache.slides import IMAGE_SUFFIXES
from hist_cache.texts import first_names

DICOM = ".dcm"
WSI_SUFFIXES = (*IMAGE_SUFFIXES, ".svslide", DICOM)
INDEX_SUFFIX = ".vms"  # of Hamamatsu, whose pixels are JPEG files beside it


def slide_images(path: Path) -> list[Path]:
    """List the slides of a folder, sorted by name, or the one file.

    Folders in it are not searched (those beside a .mrxs file are parts of that slide), except for those with DICOM
    files: each is a slide. Of a DICOM slide, the largest file is named. Hidden files are left out.

    Args:
        path: A folder, or an image file.

    Raises:
        InputError: There is no such file, no slide in the folder, or two slides have one name.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; give slides with --wsi")
    files = [file for file in sorted(path.iterdir()) if not file.name.startswith(".")]
    plain = [file for file in files if file.suffix.lower() in WSI_SUFFIXES and file.suffix.lower() != DICOM]
    indexed = tuple(file.stem for file in plain if file.suffix.lower() == INDEX_SUFFIX)
    images = [file for file in plain if not (file.suffix.lower() == ".jpg" and file.name.startswith(indexed))]
    images = [file for file in images if file.is_file()]
    for folder in (path, *(file for file in files if file.is_dir())):
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
    if path.suffix.lower() == DICOM:
        return path.absolute().parent.name
    stem = path.stem
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def _dicom_slide(folder: Path) -> list[Path]:
    """Return the largest DICOM file of a folder, which is that of level 0; nothing where it has none."""
    files = [file for file in folder.glob("[!.]*") if file.suffix.lower() == DICOM and file.is_file()]
    series = {file: series_uid(file) for file in files}
    if len(set(series.values()) - {None}) > 1:
        raise InputError(f"{folder}: DICOM files of several slides; put those of each into a folder of its own")
    files = [file for file in files if series[file]] or files  # a damaged one is opened only if it is the only one
    return sorted(files, key=lambda file: (-file.stat().st_size, file.name))[:1]
