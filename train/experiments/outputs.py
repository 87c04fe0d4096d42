"""What a fold leaves in its folder, and what a run leaves above its folds."""

from __future__ import annotations

import hashlib
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from hist_cache import runs as files
from hist_cache.cached_slide import CachedSlide
from hist_cache.errors import InputError, one_line
from hist_cache.files import atomic_write, write_json, write_text
from hist_cache.fingerprint import provenance
from hist_cache.splits import Split
from hist_cache.spot_scale import usual_scale
from train.data import SpotData
from train.experiments.fold_files import read_metrics
from train.experiments.setting import Setting, read_setting
from train.expression import UNITS
from train.metrics import mean_of, std_of
from train.models.base import Model
from train.models.ensemble import EnsembleModel
from train.models.projection import TangentProjection
from train.models.registry import get_model
from train.recipes.fitted import FittedRecipe


def make_model(setting: Setting) -> Model:
    """What predicts under a setting, on the CPU: its model, or an ensemble of such models."""
    count = setting.recipe.ensemble
    return make_member(setting) if count == 1 else EnsembleModel([make_member(setting) for _ in range(count)])


def make_member(setting: Setting) -> Model:
    """A model of a setting, on the CPU; its weights are drawn from torch's random state."""
    entry = get_model(setting.model_name)
    more = (setting.variant,) if entry.has_variants else ()
    model = entry.load()(setting.model, *more)
    model.precision = setting.fit.precision if entry.learns else "fp32"
    model.pearson, model.select_by = setting.fit.pearson, setting.fit.select_by
    if setting.recipe.ridge == "skip":
        model.start_at_zero()
    return model


def write_start(
    folder: Path,
    setting: Setting,
    panel: list[str],
    slides: dict[str, CachedSlide],
    split: Split,
    device: torch.device,
    more: Mapping[str, Any],
) -> None:
    """Write what a fold will be, before its first epoch: config.json, with `more` in it, and panel.txt."""
    ids, train = setting.slides_of(split.ids), setting.slides_of(split.train)
    patients = {s: str(slides[s].attributes["patient"]) for s in ids if "patient" in slides[s].attributes}
    scale = usual_scale(slides[s] for s in train)
    config = setting.as_dict() | {
        "split": asdict(split),
        "split_kind": setting.split,
        "patients": patients if len(patients) == len(ids) else {},
        "images": {name: slide.image for name, slide in slides.items() if slide.image},
        **({} if scale is None else {"scale": asdict(scale)}),
        "provenance": provenance(device=str(device), threads=torch.get_num_threads()),
        **more,
    }
    write_json(folder / files.CONFIG, config)
    write_text(folder / files.PANEL, "".join(f"{g}\n" for g in panel))


def fold_bytes(model: Model, members: int = 1) -> int:
    """What a fold writes at least: its weights; if it learns, also a checkpoint with them twice and Adam's moments.

    Args:
        model: The model, or a member of an ensemble.
        members: Of the ensemble; their checkpoints are kept until the weights of all of them are written.
    """
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    return members * weights * (5 if model.learns else 1)


def fold_cost(
    history: list[dict[str, float]], inference_s: float, model: Model, device: torch.device
) -> dict[str, Any]:
    """What a fold took.

    Args:
        history: Of its training; without epochs, seconds an epoch are left out.
        inference_s: Seconds for all test spots.
        model: What was trained; all numbers of its file are counted, also those of a bank of train spots.
        device: Where it ran. Peak memory is the device's on a GPU and the whole process's on a CPU.
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 1e9
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    seconds = [row["seconds"] for row in history]
    epoch = {"train_s_per_epoch": float(np.median(seconds))} if seconds else {}
    return epoch | {
        "inference_s": inference_s,
        "peak_memory_gb": peak,
        "numbers_m": sum(value.numel() for value in model.state_dict().values()) / 1e6,
        "device": str(device),
        "threads": torch.get_num_threads(),
    }


def prediction_table(
    predicted: np.ndarray,
    data: SpotData,
    rows: torch.Tensor,
    slides: dict[str, CachedSlide],
    projection: TangentProjection | None,
) -> anndata.AnnData:
    """Test spots x genes, as scanpy and squidpy read it, with the slides' thumbnails where these look for them.

    Spots of a part of a slide have the ID of the whole slide, which its thumbnail and barcodes are of.

    Args:
        predicted: `(n, G)`.
        data: All spots.
        rows: `(n,)` of the test spots.
        slides: Whole ones, by id.
        projection: Of the test spots' embeddings, for a model that has one.
    """
    index = data.row[rows].cpu().numpy()
    slide = np.array(data.whole_slides or data.slides)[data.slide[rows].cpu().numpy()]
    order = list(dict.fromkeys(slide))
    barcodes = np.concatenate([np.array(slides[s].barcodes, dtype=object)[index[slide == s]] for s in order])
    obs = pd.DataFrame(
        {"slide": pd.Categorical(slide), "barcode": barcodes, "complete_niche": data.complete[rows].cpu().numpy()},
        index=[f"{s}_{b}" for s, b in zip(slide, barcodes, strict=True)],
    )
    obsm = {"spatial": np.concatenate([slides[s].coords[index[slide == s]] for s in order])}
    uns: dict[str, Any] = {
        "expression": UNITS[data.transform],
        "spatial": {s: squidpy_picture(slides[s]) for s in order},
    }
    if projection is not None:
        uns["plane"] = {"geometry": projection.geometry, "explained": projection.explained}
        obsm |= {f"plane_{name}": points for name, points in projection.points.items()}
        for name, radius in projection.radii.items():
            obs[f"radius_{name}"] = radius
    return anndata.AnnData(
        X=predicted.astype(np.float32),
        obs=obs,
        var=pd.DataFrame(index=data.panel),
        layers={"truth": data.expression[rows].cpu().numpy()},
        obsm=obsm,
        uns=uns,
    )


def squidpy_picture(slide: CachedSlide) -> dict[str, Any]:
    """A slide's thumbnail and scale, as squidpy keeps them in `uns["spatial"]`.

    `hist_cache.h5ad.name_pictures` gives the thumbnail in the file the name `hires` too.
    """
    scale, um_per_px = 1 / float(slide.attributes["thumbnail_downsample"]), float(slide.attributes["um_per_px"])
    factors = {
        "tissue_lowres_scalef": scale,
        "tissue_hires_scalef": scale,
        "spot_diameter_fullres": float(slide.attributes["spot_um"]) / um_per_px,
        "microns_per_pixel": um_per_px,  # as Space Ranger names it
    }
    return {"images": {"lowres": slide.thumbnail}, "scalefactors": factors}


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """Write what was logged as CSV, a row an epoch."""
    with atomic_write(path) as aside:
        table = pd.DataFrame(history)
        table["epoch"] = table["epoch"].astype(int)
        table.to_csv(aside, index=False)


def save_model(path: Path, model: Model) -> str:
    """Write a model's weights; those of an encoder are no part of them. Returns the SHA-256 of the file."""
    content: bytes = save({k: v.contiguous().cpu() for k, v in model.state_dict().items()})
    with atomic_write(path) as aside:
        aside.write_bytes(content)  # not `save_file`, whose files only their owner may read
    return hashlib.sha256(content).hexdigest()


def save_recipe(folder: Path, recipe: FittedRecipe) -> None:
    """Write what a recipe has fitted on the train spots, if anything: slides that are predicted later need it."""
    if recipe.tensors:
        with atomic_write(folder / files.RECIPE) as aside:
            aside.write_bytes(save({name: value.contiguous().cpu() for name, value in recipe.tensors.items()}))


def load_model(folder: Path) -> Model:
    """The model of a finished fold, in evaluation mode on the CPU.

    That of a fold whose encoder was fine-tuned takes embeddings of `hist-extract --lora`.

    Raises:
        InputError: A file of the fold is damaged, or cannot be read.
    """
    file = folder / files.MODEL
    model = make_model(read_setting(folder / files.CONFIG, files.Fold(folder).config))
    digest = read_metrics(folder).get("model_digest")
    try:
        content = file.read_bytes()
        if digest not in (None, hashlib.sha256(content).hexdigest()):  # version 0.1 recorded none
            raise ValueError("its bytes are not those that were written")
        model.load_state_dict(load(content))
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: damaged ({one_line(error)}); delete {folder} to run it again") from error
    return model.eval()


def write_summary(run: Path) -> dict[str, Any]:
    """Mean and standard deviation over the finished folds, of the run and of its baselines; also `summary.json`."""
    folds = files.Run(run).folds
    metrics = {fold.folder.name: read_metrics(fold.folder) for fold in folds}
    name = read_setting(folds[0].folder / files.CONFIG, folds[0].config).model_name
    rows = {
        name: [m["pooled"] for m in metrics.values()],
        f"{name} (slide mean)": [m["slide_mean"] for m in metrics.values()],
    }
    for baseline in next(iter(metrics.values()))["controls"]:
        if baseline not in rows:
            rows[baseline] = [m["controls"].get(baseline, {}) for m in metrics.values()]
    summary = {
        "folds": list(metrics),
        "diverged": [fold for fold, m in metrics.items() if m.get("diverged")],
        "mean": {row: mean_of(values) for row, values in rows.items()},
        "std": {row: std_of(values) for row, values in rows.items()},
    }
    if leaks := {fold.folder.name: leak for fold in folds if (leak := fold.config.get("leak"))}:
        summary["leaks"] = leaks
    write_json(run / files.SUMMARY, summary)
    return summary
