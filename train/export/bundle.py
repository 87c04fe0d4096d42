"""The folds of a run copied without training data: no measured expression, no names of slides or patients."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from extract.encoders.adapters import ADAPTER, OWNER, SETTINGS, TENSORS
from hist_cache.errors import InputError
from hist_cache.files import atomic_write, write_json, write_text
from hist_cache.fingerprint import short_hash
from hist_cache.runs import CONFIG, METRICS, MODEL, PANEL, RECIPE, Fold, read_object
from hist_cache.slide_file import read_fingerprint
from train.models.registry import get_model
from train.predict.folds import TrainedFold, plain_cache, training_cache
from train.predict.reference import reference_of

LEFT_OUT = ("patients", "provenance", "digests")  # of config.json
SHOWN = 12  # digits of an image's digest that stand for the name of its slide


def check_exportable(folds: Sequence[TrainedFold]) -> None:
    """`InputError` for models that are their training data."""
    for fold in folds:
        if get_model(fold.setting.model_name).keeps_spots:
            raise InputError(
                f"{fold.folder}: {fold.setting.model_name} predicts with the expression of its train spots, which an "
                "export must not have in it; export a model that does not keep them"
            )


def export_fold(fold: TrainedFold, folder: Path, cache_root: Path) -> None:
    """Copy what predicts of a fold.

    Args:
        fold: The fold.
        folder: Of the copy.
        cache_root: Folder of all caches, where what the fold does not state itself is looked up.

    Raises:
        InputError: The fold does not say how large its spots are.
        WriteError: There is no room.
    """
    if fold.scale is None:
        raise InputError(
            f"{fold.folder}: does not say how large its spots are, and the cache that it was trained on is not there; "
            "give the folder of the cache with --cache"
        )
    cache = training_cache(fold, cache_root)
    reference = reference_of(fold, cache)
    images = known_images(fold, cache_root)
    stated = Fold(fold.folder).config
    slides = (*fold.setting.slides, *fold.setting.slides_of(fold.split.ids))
    names = {slide: slide_alias(slide, images) for slide in slides}
    names |= {patient: f"patient-{short_hash({'name': patient})}" for patient in stated.get("patients", {}).values()}
    config = {key: value for key, value in stated.items() if key not in LEFT_OUT}
    config["cache"] = {key: value for key, value in config["cache"].items() if key != "adapter"}  # names of slides
    config |= {"scale": asdict(fold.scale), "images": images}
    config["split"] = config["split"] | {"name": str(config["split_kind"])}
    write_json(folder / CONFIG, renamed(config, names))
    write_text(folder / PANEL, "".join(f"{gene}\n" for gene in fold.panel))
    for file in (MODEL, RECIPE):
        if (fold.folder / file).is_file():
            copy_file(fold.folder / file, folder / file)
    if reference is not None:
        reference.write(folder)
    if fold.adapter is not None:
        for file in (SETTINGS, TENSORS):
            copy_file(fold.adapter / file, folder / ADAPTER / file)
        owner = read_object(fold.adapter / OWNER)
        write_json(folder / ADAPTER / OWNER, owner | {"slides": None})
    write_json(folder / METRICS, renamed(read_object(fold.folder / METRICS), names))  # last: the fold is complete


def known_images(fold: TrainedFold, cache_root: Path) -> dict[str, str]:
    """SHA-256 of the images of a fold's slides: as its folder states them, else as the cache does."""
    if fold.images:
        return fold.images
    cache = plain_cache(fold.setting, cache_root)
    paths = {slide: cache.path(slide) for slide in fold.setting.slides_of(fold.split.ids)}
    digests = {s: str(read_fingerprint(path).slide.get("image", "")) for s, path in paths.items() if path.is_file()}
    return {slide: digest for slide, digest in digests.items() if digest}


def slide_alias(slide: str, images: Mapping[str, str]) -> str:
    """What stands for the name of a slide: digits of its image's digest, or of its name where that is not known."""
    return f"slide-{images[slide][:SHOWN]}" if slide in images else f"slide-{short_hash({'name': slide})}"


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """A value of JSON with names replaced wherever they stand, in keys and in sentences too."""
    if not names:
        return value
    whole = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    pattern = re.compile(rf"(?<![A-Za-z0-9_])(?:{whole})(?![A-Za-z0-9_])")

    def of(part: Any) -> Any:
        if isinstance(part, dict):
            return {of(key): of(item) for key, item in part.items()}
        if isinstance(part, list):
            return [of(item) for item in part]
        return pattern.sub(lambda match: names[match[0]], part) if isinstance(part, str) else part

    return of(value)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, which gets its name when it is complete."""
    with atomic_write(target) as aside:
        shutil.copyfile(source, aside)
