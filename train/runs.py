"""Running folds: train one, test it, write its folder. Folds are independent, and a finished one is not run again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from hist_cache import runs as files
from hist_cache.cache import CachedSlide
from hist_cache.console import say, warn
from hist_cache.files import write_json, write_text, written_aside
from hist_cache.fingerprint import provenance, short_hash
from hist_cache.splits import Split
from train import controls
from train.data import SpotData
from train.figures import plot_maps, plot_training
from train.loop import LoopConfig, fit, predict
from train.metrics import mean_of, std_of, summarize, test_metrics
from train.model import CURVATURE_RANGE, HistModel, ModelConfig
from train.variants import Variant, get_variant

MODEL_KEY = "hist"  # the row of the table; controls have names of their own


@dataclass(frozen=True)
class Setting:
    """What decides a run's numbers; its hash is part of the run's name."""

    dataset: str
    variant: str
    cache: dict[str, Any]  # the fingerprint's common part
    slides: tuple[str, ...]
    neighbors: int
    genes: str
    n_genes: int
    panel: str  # digest of the names
    split: str
    protocol: str
    model: ModelConfig
    loop: LoopConfig

    @property
    def name(self) -> str:
        """`full-1a2b3c4d`: the variant, and 8 hex digits of all the rest."""
        return f"{self.variant}-{short_hash(asdict(self))}"


def run_fold(
    folder: Path,
    setting: Setting,
    variant: Variant,
    data: SpotData,
    slides: dict[str, CachedSlide],
    split: Split,
    device: torch.device,
    on_epoch: Any,
) -> dict[str, Any]:
    """Train and test one fold, writing its folder; returns its metrics. Seeded: the same call, the same numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(setting.loop.seed)
    model = HistModel(setting.model, variant).to(device)
    config = asdict(setting) | {
        "split": asdict(split),
        "split_kind": setting.split,
        "provenance": provenance(device=str(device)),
    }
    write_json(folder / files.CONFIG, config)
    write_text(folder / files.PANEL, "".join(f"{g}\n" for g in data.panel))
    train, val, test = (data.rows(part) for part in (split.train, split.val, split.test))

    if files.Fold(folder).stopped:
        say(f"{folder.name}: going on with the stopped run ({folder}; delete it to start over)")
    try:
        progress = fit(model, data, train, val, setting.loop, folder / files.CHECKPOINT, on_epoch)
    except KeyboardInterrupt:
        save_model(folder / files.MODEL, model)
        say(f"kept the best weights so far in {folder / files.MODEL}; --resume goes on from here")
        raise
    history = progress.history
    write_history(folder / files.HISTORY, history)
    save_model(folder / files.MODEL, model)
    predicted = predict(model, data, test).cpu().numpy()
    truth = data.expression[test].cpu().numpy()
    slide = np.array(data.slides)[data.slide[test].cpu().numpy()]
    table = prediction_table(predicted, truth, slide, slides, data.panel)
    files.write_predictions(folder / files.PREDICTIONS, table)

    metrics = test_metrics(predicted, truth, slide)
    metrics["controls"] = control_metrics(predicted, data, train, val, test, setting.loop.seed)
    metrics["best_epoch"], metrics["epochs"] = progress.best_epoch, progress.epoch
    metrics["warnings"] = collapsed(history[progress.best_epoch], variant)
    for problem in metrics["warnings"]:
        warn(f"{folder.name}: {problem}")
    plot_training(folder / "training.png", pd.DataFrame(history), progress.best_epoch)
    plot_maps(folder / "maps.png", table, {s: slides[s] for s in split.test})
    write_json(folder / files.METRICS, metrics)  # last: from here on the fold is finished
    (folder / files.CHECKPOINT).unlink(missing_ok=True)
    return metrics


def control_metrics(
    predicted: np.ndarray,
    data: SpotData,
    train: torch.Tensor,
    val: torch.Tensor,
    test: torch.Tensor,
    seed: int,
) -> dict[str, dict[str, float]]:
    """The pooled metrics of the controls on the same test spots."""

    def features(rows: torch.Tensor) -> np.ndarray:
        return torch.cat([data.spot[rows], data.niche[rows]], dim=1).float().cpu().numpy()

    def expression(rows: torch.Tensor) -> np.ndarray:
        return data.expression[rows].cpu().numpy()

    truth = expression(test)
    ridge = controls.ridge(features(train), expression(train), features(val), expression(val), features(test), seed)
    return {
        "permuted": controls.permuted(predicted, truth, seed),
        "train_mean": controls.train_mean(expression(train), truth),
        "ridge": summarize(ridge, truth),
    }


def prediction_table(
    predicted: np.ndarray,
    truth: np.ndarray,
    slide: np.ndarray,
    slides: dict[str, CachedSlide],
    panel: list[str],
) -> anndata.AnnData:
    """Test spots x genes, as scanpy and squidpy read it; spots are in the order of data.rows, slide after slide."""
    order = list(dict.fromkeys(slide))
    barcodes = [b for s in order for b in slides[s].barcodes]
    coords = np.concatenate([slides[s].coords for s in order])
    obs = pd.DataFrame(
        {"slide": pd.Categorical(slide), "barcode": barcodes},
        index=[f"{s}_{b}" for s, b in zip(slide, barcodes, strict=True)],
    )
    return anndata.AnnData(
        X=predicted.astype(np.float32),
        obs=obs,
        var=pd.DataFrame(index=panel),
        layers={"truth": truth.astype(np.float32)},
        obsm={"spatial": coords},
        uns={"expression": "log2(1 + count)"},
    )


def collapsed(row: dict[str, float], variant: Variant) -> list[str]:
    """Signs that the geometry has collapsed, in words; empty where it is sound."""
    problems = []
    if variant.terms.geometry == "lorentz" and variant.alpha_scale:
        low, high = CURVATURE_RANGE
        if not low * 1.01 < row["c"] < high / 1.01:
            problems.append(f"geometry: curvature at its limit ({row['c']:.3g})")
        if any(variant.terms.entail) and row["hea"] < 1e-4:
            problems.append("geometry: entailment loss is 0, every cone holds its child")
        if min(v for k, v in row.items() if k.startswith("radius_")) < 1e-2:
            problems.append("geometry: an embedding has collapsed into the origin")
    if row["skipped"]:
        problems.append(f"{row['skipped']:.0f} steps of the best epoch had a non-finite gradient and were skipped")
    return problems


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    with written_aside(path) as aside:
        table = pd.DataFrame(history)
        table["epoch"] = table["epoch"].astype(int)
        table.to_csv(aside, index=False)


def save_model(path: Path, model: HistModel) -> None:
    with written_aside(path) as aside:
        save_file({k: v.contiguous().cpu() for k, v in model.state_dict().items()}, aside)


def load_model(folder: Path) -> HistModel:
    """The model of a finished fold, with its best weights, in evaluation mode on the CPU."""
    config = files.Fold(folder).config
    model = HistModel(ModelConfig(**config["model"]), get_variant(config["variant"]))
    model.load_state_dict(load_file(folder / files.MODEL))
    return model.eval()


def write_summary(run: Path) -> dict[str, Any]:
    """Mean and standard deviation over the finished folds, of the run and of its controls; also `summary.json`."""
    metrics = {fold.folder.name: fold.metrics for fold in files.Run(run).folds}
    rows = {
        MODEL_KEY: [m["pooled"] for m in metrics.values()],
        f"{MODEL_KEY} (slide mean)": [m["slide_mean"] for m in metrics.values()],
    }
    for control in next(iter(metrics.values()))["controls"]:
        rows[control] = [m["controls"][control] for m in metrics.values()]
    summary = {
        "folds": list(metrics),
        "mean": {name: mean_of(values) for name, values in rows.items()},
        "std": {name: std_of(values) for name, values in rows.items()},
    }
    write_json(run / files.SUMMARY, summary)
    return summary
