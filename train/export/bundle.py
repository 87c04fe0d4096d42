"""The folds of a run copied without training data: no measured expression, no names of slides or patients."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from extract.encoders.adapter_slides import AdapterSlides
from extract.encoders.adapters import ADAPTER, OWNER, SETTINGS, TENSORS, read_adapter_slides
from hist_cache.console import warn
from hist_cache.errors import InputError
from hist_cache.files import atomic_write, write_json, write_text
from hist_cache.runs import CONFIG, METRICS, MODEL, PANEL, RECIPE, Fold, read_object
from train.export.names import nameless_config, nameless_metrics, slide_aliases
from train.models.registry import get_model
from train.predict.folds import TrainedFold, training_cache
from train.predict.reference import missing_reference, reference_of


def check_exportable(folds: Sequence[TrainedFold]) -> None:
    """`InputError` for models that are their training data, and for folds that do not say how large their spots are."""
    for fold in folds:
        if get_model(fold.setting.model_name).keeps_spots:
            raise InputError(
                f"{fold.folder}: {fold.setting.model_name} predicts with the expression of its train spots, which an "
                "export must not have in it; export a model that does not keep them"
            )
        if fold.scale is None:
            raise InputError(
                f"{fold.folder}: does not say how large its spots are, and the cache that it was trained on is not "
                "there; give the folder of the cache with --cache"
            )


def export_fold(fold: TrainedFold, folder: Path, cache_root: Path) -> None:
    """Copy what predicts of a fold.

    Args:
        fold: The fold, which `check_exportable` has passed.
        folder: Of the copy.
        cache_root: Folder of all caches, where what the fold does not state itself is looked up.

    Raises:
        WriteError: There is no room.
    """
    assert fold.scale is not None
    stated = Fold(fold.folder).config
    seen = None if fold.adapter is None else read_adapter_slides(fold.adapter)
    of_adapter = () if seen is None else (*seen.train, *seen.val, *seen.test)
    slides = (*fold.setting.slides, *fold.setting.slides_of(fold.split.ids), *of_adapter)
    aliases = slide_aliases(slides, fold.images)
    if unknown := len(set(slides) - set(fold.images)):
        warn(f"{fold.folder}: the images of {unknown} slides are not known, so that nobody will be told of these leaks")
    write_json(folder / CONFIG, nameless_config(stated | {"scale": asdict(fold.scale)}, aliases, fold.images))
    write_text(folder / PANEL, "".join(f"{gene}\n" for gene in fold.panel))
    for file in (MODEL, RECIPE):
        if (fold.folder / file).is_file():
            copy_file(fold.folder / file, folder / file)
    cache = training_cache(fold, cache_root)
    reference = reference_of(fold, cache)
    if reference is None:
        warn(f"{fold.folder}: exported without distances to its training data: {missing_reference(fold, cache)}")
    else:
        reference.write(folder)
    if fold.adapter is not None:
        for file in (SETTINGS, TENSORS):
            copy_file(fold.adapter / file, folder / ADAPTER / file)
        known = None
        if seen is not None:
            train, val, test = (tuple(aliases[s] for s in part) for part in (seen.train, seen.val, seen.test))
            known = AdapterSlides(seen.dataset, train, val, test, {}, {}).as_dict()
        write_json(folder / ADAPTER / OWNER, read_object(fold.adapter / OWNER) | {"slides": known})
    patients = set(stated.get("patients", {}).values()) | (set() if seen is None else set(seen.patients.values()))
    metrics = nameless_metrics(read_object(fold.folder / METRICS), aliases, patients)
    write_json(folder / METRICS, metrics)  # last: the fold is complete


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, which gets its name when it is complete."""
    with atomic_write(target) as aside:
        shutil.copyfile(source, aside)
