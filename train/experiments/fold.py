"""Running folds: train one, test it, write its folder. Folds are independent, and a finished one is not run again."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from hist_cache import runs as files
from hist_cache.cache import CachedSlide
from hist_cache.errors import HistError
from hist_cache.files import atomic_write, write_json, write_text
from hist_cache.fingerprint import provenance
from hist_cache.splits import Split
from train import distributed as distributed
from train.data import UNITS, SpotData
from train.experiments.setting import Setting
from train.figures import plot_geometry, plot_maps, plot_training
from train.fit.checkpoints import Progress
from train.fit.loop import OUT_OF_MEMORY, Reading, decode, encode, fit
from train.metrics import mean_of, std_of, summarize, test_metrics
from train.models import baselines as controls
from train.models.hist import CURVATURE_RANGE, HistConfig, HistModel
from train.models.projection import TangentProjection, tangent_projection
from train.models.variants import Variant

if TYPE_CHECKING:
    from train.finetune.encoder import Finetuner

MODEL_KEY = "hist"  # the row of the table; controls have names of their own


def run_fold(
    folder: Path,
    setting: Setting,
    data: SpotData,
    slides: dict[str, CachedSlide],
    split: Split,
    device: torch.device,
    on_epoch: Callable[[dict[str, float]], None],
    tuner: Finetuner | None = None,
) -> dict[str, Any]:
    """Train and test one fold, writing its folder; returns its metrics. Seeded: the same call, the same numbers.

    tuner: tunes the encoder with the model, where the setting asks for it and `data` has a frontier. Prints nothing,
    so that many may run at once. Interrupted, it leaves the best weights and a checkpoint. Of several processes on one
    batch the first writes and tests; the others return {}.
    """
    torch.manual_seed(setting.loop.seed)
    model = HistModel(setting.model, setting.variant).to(device)
    if tuner is not None:
        assert setting.tuning is not None
        assert data.frontier is not None
        model.encoder = tuner.start(setting.tuning, data.frontier)
    reading = tuner.reading if tuner else None
    leads = distributed.rank() == 0
    if leads:
        write_start(folder, setting, data.panel, slides, split, device)
    else:
        torch.manual_seed(setting.loop.seed + distributed.rank())  # the same weights, other dropout
    train, val = data.rows(split.train), data.rows(split.val)
    tested = setting.protocol.tested

    def save() -> None:
        save_model(folder / files.MODEL, model)
        if tuner is not None:
            tuner.save(folder)

    try:
        progress = fit(model, data, train, val, setting.loop, folder / files.CHECKPOINT, on_epoch, tested, reading)
    except KeyboardInterrupt:
        if leads:
            save()
        raise
    except torch.OutOfMemoryError as error:
        raise HistError(f"{folder}: {OUT_OF_MEMORY if tuner else 'out of memory; give a smaller --width'}") from error
    if not leads:
        return {}
    save()
    return test_fold(folder, setting, model, data, slides, split, progress, reading)


def write_start(
    folder: Path,
    setting: Setting,
    panel: list[str],
    slides: dict[str, CachedSlide],
    split: Split,
    device: torch.device,
) -> None:
    """What a fold will be, before its first epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    patients = {s: str(slides[s].attributes["patient"]) for s in split.ids if "patient" in slides[s].attributes}
    config = setting.as_dict() | {
        "split": asdict(split),
        "split_kind": setting.split,
        "patients": patients if len(patients) == len(split.ids) else {},
        "provenance": provenance(device=str(device), threads=torch.get_num_threads()),
    }
    write_json(folder / files.CONFIG, config)
    write_text(folder / files.PANEL, "".join(f"{g}\n" for g in panel))


def test_fold(
    folder: Path,
    setting: Setting,
    model: HistModel,
    data: SpotData,
    slides: dict[str, CachedSlide],
    split: Split,
    progress: Progress,
    reading: Reading | None,
) -> dict[str, Any]:
    """Predict the test spots with a trained model; write all that a finished fold has, metrics.json last."""
    test, tested = data.rows(split.test), setting.protocol.tested
    write_history(folder / files.HISTORY, progress.history)
    started = time.monotonic()
    embedded = encode(model, data, test, reading)
    predicted = decode(model, embedded).cpu().numpy()
    write_json(folder / files.COST, cost(progress, time.monotonic() - started, test.device))
    table = prediction_table(predicted, data, test, slides, test_plane(model, data, test, embedded))
    files.write_predictions(folder / files.PREDICTIONS, table)

    truth = np.asarray(table.layers["truth"])
    metrics = test_metrics(predicted, truth, table.obs["slide"].to_numpy(), table.obs["complete_niche"].to_numpy())
    metrics["controls"] = {"permuted": controls.permuted(predicted, truth, setting.loop.seed)}
    metrics["controls"] |= data_controls(data, split, setting.loop.seed)
    metrics["best_epoch"], metrics["epochs"] = progress.best_epoch, progress.epoch
    tested_epoch = progress.best_epoch if tested == "best" else progress.epoch - 1
    metrics["warnings"] = collapsed(progress.history[tested_epoch], setting.variant)
    plot_training(folder / files.TRAINING, pd.DataFrame(progress.history), progress.best_epoch)
    plot_maps(folder / files.MAPS, table)
    plot_geometry(folder / files.GEOMETRY, table)
    write_json(folder / files.METRICS, metrics)  # last: from here on the fold is finished
    (folder / files.CHECKPOINT).unlink(missing_ok=True)
    return metrics


def cost(progress: Progress, inference_s: float, device: torch.device) -> dict[str, Any]:
    """What the fold took: seconds an epoch (median, with its validation), seconds for all test spots, peak memory.

    Memory is the device's on a GPU and the whole process's on a CPU.
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1e9
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    return {
        "train_s_per_epoch": float(np.median([row["seconds"] for row in progress.history])),
        "inference_s": inference_s,
        "peak_memory_gb": peak,
        "device": str(device),
        "threads": torch.get_num_threads(),
    }


def data_controls(data: SpotData, split: Split, seed: int) -> dict[str, dict[str, float]]:
    """The pooled metrics, on the split's test spots, of the controls that no model enters; computed once a split."""
    key = ("controls", split, seed)
    if key not in data.memo:
        train, val, test = (data.rows(part) for part in (split.train, split.val, split.test))

        def features(rows: torch.Tensor) -> np.ndarray:
            return torch.cat([data.spot[rows], data.niche[rows]], dim=1).float().cpu().numpy()

        y_train, y_val, truth = (data.expression[rows].cpu().numpy() for rows in (train, val, test))
        ridge = controls.ridge(features(train), y_train, features(val), y_val, features(test), seed)
        data.memo[key] = {
            "train_mean": controls.train_mean(y_train, truth),
            "ridge": summarize(ridge, truth),
        }
    return data.memo[key]


@torch.no_grad()
def test_plane(
    model: HistModel, data: SpotData, rows: torch.Tensor, embedded: tuple[torch.Tensor, torch.Tensor]
) -> TangentProjection:
    """Where the test spots' four embeddings lie; the genes' come from their counts, which no prediction reads."""
    model.eval()
    genes = model.genes(data.expression[rows], data.niche_expression[rows])
    return tangent_projection(model.embed(model.images(*embedded), genes), model.variant.terms.geometry)


def prediction_table(
    predicted: np.ndarray, data: SpotData, rows: torch.Tensor, slides: dict[str, CachedSlide], plane: TangentProjection
) -> anndata.AnnData:
    """Test spots x genes, as scanpy and squidpy read it, with the slides' thumbnails where these look for them."""
    index = data.row[rows].cpu().numpy()
    slide = np.array(data.slides)[data.slide[rows].cpu().numpy()]
    order = list(dict.fromkeys(slide))
    barcodes = np.concatenate([np.array(slides[s].barcodes, dtype=object)[index[slide == s]] for s in order])
    obs = pd.DataFrame(
        {"slide": pd.Categorical(slide), "barcode": barcodes, "complete_niche": data.complete[rows].cpu().numpy()},
        index=[f"{s}_{b}" for s, b in zip(slide, barcodes, strict=True)],
    )
    for name, radius in plane.radii.items():
        obs[f"radius_{name}"] = radius
    coords = np.concatenate([slides[s].coords[index[slide == s]] for s in order])
    return anndata.AnnData(
        X=predicted.astype(np.float32),
        obs=obs,
        var=pd.DataFrame(index=data.panel),
        layers={"truth": data.expression[rows].cpu().numpy()},
        obsm={"spatial": coords} | {f"plane_{name}": points for name, points in plane.points.items()},
        uns={
            "expression": UNITS[data.transform],
            "plane": {"geometry": plane.geometry, "explained": plane.explained},
            "spatial": {s: thumbnail(slides[s]) for s in order},
        },
    )


def thumbnail(slide: CachedSlide) -> dict[str, Any]:
    """A slide's picture and scale, as squidpy keeps them in `uns["spatial"]`."""
    scale = {
        "tissue_lowres_scalef": 1 / float(slide.attributes["thumbnail_downsample"]),
        "spot_diameter_fullres": float(slide.attributes["spot_um"]) / float(slide.attributes["um_per_px"]),
    }
    return {"images": {"lowres": slide.thumbnail}, "scalefactors": scale}


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
    with atomic_write(path) as aside:
        table = pd.DataFrame(history)
        table["epoch"] = table["epoch"].astype(int)
        table.to_csv(aside, index=False)


def save_model(path: Path, model: HistModel) -> None:
    with atomic_write(path) as aside:
        own = {k: v.contiguous().cpu() for k, v in model.state_dict().items() if not k.startswith("encoder.")}
        save_file(own, aside)


def load_model(folder: Path) -> HistModel:
    """The model of a finished fold, in evaluation mode on the CPU; of a tuned fold without its encoder, so that it
    takes embeddings of `hist-extract --lora`."""
    config = files.Fold(folder).config
    model = HistModel(HistConfig(**config["model"]), Variant.from_dict(config["variant"]))
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
