"""Which slides are to be predicted, and which further files belong to each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from extract.slides.listing import slide_images, slide_name
from extract.virtual_slides import SlideImage, SpotRule
from hist_cache.errors import InputError, SlideError
from hist_cache.metadata import read_metadata, read_scale
from hist_cache.slides import image_name
from hist_cache.spot_scale import SpotScale
from hist_cache.texts import bad_name, first_names
from train.predict.folds import TrainedFold
from train.predict.options import PredictOptions

MASKS = (".geojson", ".json", ".png", ".tif", ".tiff")
POSITIONS = (".csv", ".h5ad")
COUNT_TABLES = (".h5ad",)


def images_to_predict(options: PredictOptions) -> tuple[list[SlideImage], dict[str, Path]]:
    """The slides, and the measured counts of each, by name.

    Raises:
        InputError: There are no slides, or a file that belongs to them is not there.
    """
    if options.coords is not None and options.truth is not None:
        raise InputError("--coords and --truth exclude each other: with measured counts, their spots are predicted")
    given = [f"--{name}" for name in ("pitch", "lattice", "mask") if getattr(options, name) is not None]
    if given and (options.coords is not None or options.truth is not None):
        places = "--coords" if options.coords is not None else "--truth"
        raise InputError(f"{given[0]} is for spots that are placed on the tissue, and {places} says where spots are")
    root = Path(str(options.wsi))
    files = slide_images(root)
    names = [slide_name(file) for file in files]
    if problem := bad_name(names):
        raise InputError(f"--wsi {root}: {problem}; rename the file")
    masks = companions("--mask", options.mask, names, MASKS)
    positions = companions("--coords", options.coords, names, POSITIONS)
    truths = companions("--truth", options.truth, names, COUNT_TABLES)
    slides = [
        SlideImage(
            *(name, file, masks.get(name), positions.get(name, truths.get(name))),
            scale=hest_scale(name, file) if name in truths else None,
        )
        for name, file in zip(names, files, strict=True)
    ]
    return slides, truths


def companions(flag: str, given: str | None, names: Sequence[str], suffixes: Sequence[str]) -> dict[str, Path]:
    """The file of each slide: the one that was given, or those of their names in a folder.

    Args:
        flag: The option.
        given: Its value.
        names: Of the slides.
        suffixes: That such a file can have.

    Raises:
        InputError: It is not there, or a slide has none.
    """
    if given is None:
        return {}
    path = Path(given)
    if path.is_file() and len(names) == 1:
        return {names[0]: path}
    if path.is_file():
        raise InputError(f"{flag} {path}: one file for {len(names)} slides; give a folder with one a slide")
    if not path.is_dir():
        raise InputError(f"{flag} {path}: no such file or folder")
    found = {name: next((p for s in suffixes if (p := path / f"{name}{s}").is_file()), None) for name in names}
    if missing := [name for name, file in found.items() if file is None]:
        looked_for = ", ".join(f"NAME{suffix}" for suffix in suffixes)
        raise InputError(f"{flag} {path}: nothing for {first_names(missing)} (looked for {looked_for})")
    return {name: file for name, file in found.items() if file is not None}


def hest_scale(name: str, image: Path) -> SpotScale | None:
    """The scale of a slide's own spots, for one that lies in a HEST folder; None for others."""
    image = image.resolve()
    root = image.parent.parent
    if image.parent.name != "wsis" or not (root / "metadata" / f"{image_name(image)}.json").is_file():
        return None
    try:
        scale = read_scale(name, *read_metadata(root, image_name(image)), any_scale=True)
    except SlideError:
        return None
    return SpotScale(scale.pitch_um, scale.spot_um, "none")


def spot_rule(options: PredictOptions, folds: Sequence[TrainedFold]) -> SpotRule:
    """How the slides get their spots: as those that the run has learnt from, unless options say otherwise.

    Raises:
        InputError: The run does not say how large its spots are, or its folds are not alike.
    """
    first = folds[0]
    scales = {fold.scale for fold in folds}
    if None in scales or first.scale is None:
        raise InputError(
            f"--run {options.run}: does not say how large its spots are, and the cache that it was trained on is not "
            "there; give the folder of the cache with --cache"
        )
    if len(scales) > 1:
        raise InputError(f"--run {options.run}: its folds have learnt from spots of several scales; give one of them")
    lattice = options.lattice or ("square" if first.scale.lattice == "square" else "hex")
    pitch = options.pitch or first.scale.pitch_um
    return SpotRule(first.scale, pitch, lattice, first.setting.neighbors, options.um_per_px, options.any_focus)
