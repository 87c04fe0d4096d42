"""Finished runs written by hand, as hist-train leaves them: numbers that a test knows, small predictions."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from PIL import Image

from hist_cache.fingerprint import CropRule
from train.experiments.protocols import get_protocol
from train.experiments.setting import Setting
from train.fit.config import FitConfig
from train.models.configs import HistConfig
from train.models.variants import get_variant

KEYS = ("pcc@10", "pcc@50", "mse", "mae")
GENES = [f"GENE{i}" for i in range(60)]
SETTING = Setting(
    dataset="tiny",
    test_dataset=None,
    variant=get_variant("full"),
    protocol=get_protocol("paper"),
    cache={
        "encoder": "uni",
        "input_size": 224,
        "lora": None,
        "mean": [0.485, 0.456, 0.406],
        "crop_rule": CropRule().as_dict(),
        "precision": "fp32",
        "pretrained": True,
        "resize": "antialiased bicubic, uint8",
        "std": [0.229, 0.224, 0.225],
        "weights": "0" * 64,
    },
    slides=("S0", "S1", "S2"),
    neighbors=6,
    genes="hmhvg",
    n_genes=60,
    panel="a" * 64,
    split="default",
    transform="log2",
    model=HistConfig(embedding_width=64, n_genes=60, width=16, depth=1),
    fit=FitConfig(epochs=4, batch_size=8, lr=0.001),
)
CONFIG: dict[str, Any] = SETTING.as_dict() | {
    "split_kind": SETTING.split,
    "patients": {},
    "provenance": {
        "versions": {"python": "3.11.7", "hist-cache": "0.1.0", "torch": "2", "timm": "1.0.31"},
        "host": "example",
        "date": "2026-01-02T03:04:05+0000",
        "command": "hist-train",
        "device": "cpu",
        "threads": 1,
    },
}
RIDGE: dict[str, Any] = {  # what config.json of another model changes; its training loop's options mean nothing
    "model_name": "ridge",
    "variant": None,
    "model": {"embedding_width": 64, "n_genes": 60},
    "loop": {"epochs": 100, "patience": 20, "batch_size": 256, "lr": 0.0001, "weight_decay": 0.1, "seed": 42},
}


def numbers(value: float) -> dict[str, float]:
    """All metrics from one: `value` is PCC@10."""
    return {"pcc@10": value, "pcc@50": value - 0.1, "mse": 2 - value, "mae": 1 - value / 2}


def write_run(
    root: Path,
    values: Sequence[float],
    *,
    change: Mapping[str, Any] | None = None,
    name: str | None = None,
    tests: Sequence[Sequence[str]] | None = None,
    predictions: bool = False,
    seed: int = 0,
    **metrics: Any,
) -> Path:
    """A run whose fold i has PCC@10 values[i]; returns its folder.

    change: entries of config.json by dotted key; `RIDGE` makes a run of a model without embeddings and without
    training. tests: each fold's test slides (default S0, S1, ...).
    """
    config = copy.deepcopy(CONFIG)
    for key, value in (change or {}).items():
        place = config
        *path, last = key.split(".")
        for part in path:
            place = place[part]
        place[last] = value
    is_hist = config["variant"] is not None
    method = config["variant"]["name"] if is_hist else config["model_name"]
    folder = root / config["dataset"] / (name or f"{method}-{zlib.crc32(str(change).encode()):08x}")
    for i, value in enumerate(values):
        test = list(tests[i]) if tests else [f"S{i % 3}"]
        config["split"] = {"train": ["T1", "T2"], "val": ["V1"], "test": test, "name": f"draw-{i}"}
        fold = folder / f"fold{i}"
        fold.mkdir(parents=True)
        (fold / "config.json").write_text(json.dumps(config))
        cost = {"inference_s": 0.5, "peak_memory_gb": 2.0, "numbers_m": 1.5, "device": "cpu", "threads": 1}
        cost |= {"train_s_per_epoch": 1.0 + i} if is_hist else {}
        (fold / "cost.json").write_text(json.dumps(cost))
        (fold / "panel.txt").write_text("\n".join(GENES) + "\n")
        slides = {slide: numbers(value - 0.01 * j) for j, slide in enumerate(test)}
        fold_metrics = {
            "pooled": numbers(value),
            "slide_mean": numbers(value - 0.005),
            "slides": slides,
            "complete_niches": numbers(value + 0.01),
            "n_spots": 40,
            "n_complete_niches": 20,
            "n_undefined_genes": 0,
            "controls": {"permuted": numbers(0.1), "train_mean": numbers(0.0), "ridge": numbers(0.4 + 0.01 * i)},
            "best_epoch": 2 if is_hist else None,
            "epochs": 4 if is_hist else 0,
            "warnings": [],
        }
        if predictions:
            fake_predictions(test, value, seed + i, is_hist).write_h5ad(fold / "predictions.h5ad")
            sizes = {"maps": (90, 50)} | ({"training": (300, 150), "geometry": (100, 50)} if is_hist else {})
            for figure, size in sizes.items():
                noise = np.random.default_rng(i).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(noise).save(fold / f"{figure}.png")
        (fold / "metrics.json").write_text(json.dumps(fold_metrics | metrics))
    return folder


def fake_predictions(slides: Sequence[str], skill: float, seed: int, radii: bool = True) -> anndata.AnnData:
    """20 spots a slide x 60 genes; predictions are the truth and noise, less of it for more skill.

    radii: whether the model has embeddings, whose distances from the origin are then in obs.
    """
    rng = np.random.default_rng(seed)
    n = 20 * len(slides)
    slide = np.repeat(list(slides), 20)
    truth = rng.gamma(2, 1.5, (n, len(GENES)))
    predicted = skill * truth + (1 - skill) * rng.normal(3, 2, truth.shape)
    obs = pd.DataFrame(
        {
            "slide": pd.Categorical(slide),
            "barcode": [f"B{i % 20}" for i in range(n)],
            "complete_niche": np.arange(n) % 2 == 0,
            "region": np.where(np.arange(n) % 20 < 12, "tumor", "stroma"),
            **{f"radius_{e}_{level}": rng.random(n) for e in ("image", "gene") for level in ("spot", "niche") if radii},
        },
        index=[f"{s}_B{i % 20}" for i, s in enumerate(slide)],
    )
    x, y = np.arange(n) % 5, np.arange(n) % 20 // 5
    thumbnail = rng.integers(0, 255, (100, 120, 3), dtype=np.uint8)
    scale = {"tissue_lowres_scalef": 0.1, "spot_diameter_fullres": 150.0, "microns_per_pixel": 0.5}
    return anndata.AnnData(
        X=predicted.astype(np.float32),
        obs=obs,
        var=pd.DataFrame(index=GENES),
        layers={"truth": truth.astype(np.float32)},
        obsm={"spatial": np.stack([x * 200.0 + 100, y * 200.0 + 100], axis=1)},
        uns={
            "expression": "log2(1 + count)",
            "spatial": {s: {"images": {"lowres": thumbnail}, "scalefactors": scale} for s in slides},
        },
    )
