"""A run's settings: flat, by name, and in words."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hist_cache.fingerprint import identity_hash, is_tuned, short_hash
from hist_cache.slide_parts import WITHIN
from train.experiments.setting import Setting
from train.models.configs import ModelConfig
from train.models.registry import get_model

RANKING = (  # runs are put in order by these settings, then by the others
    *(
        "dataset",
        "test_dataset",
        "protocol",
        "recipe",
        "split",
        "lora_layers",
        "genes",
        "n_genes",
        "transform",
        "neighbors",
    ),
)
DATA = (  # settings on which data and baselines depend
    *("dataset", "test_dataset", "split", "encoder", "cache", "slides", "neighbors", "genes", "n_genes", "panel"),
    *("transform", "panel_from", "edge_spots", "niche_profile", "seed", "split_seed", "counts", "embeddings"),
)
RECIPE_SETTINGS = (  # settings on which ridge on the same inputs and targets depends
    *("recipe", "standardize", "neighbor_rings", "targets", "level", "smooth", "select_by"),
)
TRUTH = ("dataset", "test_dataset", "genes", "n_genes", "panel", "transform", "panel_from", "edge_spots", "counts")
TUNED_BEFORE = "tuned before"  # in place of the number of blocks, on a cache of an encoder with an adapter
NOT_RECORDED = "not recorded"  # by version 0.1
WITHIN_SLICES = "within slices"  # what headings and labels call splits of `WITHIN`
MADE_BY_DATA = ("embedding_width", "n_genes")  # options of a model that follow from data
PHRASES = {
    "dataset": "{}",
    "test_dataset": "tested on {}",
    "protocol": "{} protocol",
    "recipe": "{} recipe",
    "split": "{} split",
    "encoder": "{}",
    "cache": "cache {}",
    "slides": "{} slides",
    "neighbors": "{} neighbours",
    "genes": "{}",
    "n_genes": "{} genes",
    "panel": "panel {}",
    "transform": "{}",
    "lora_layers": "LoRA {}",
    "panel_from": "panel from {} slides",
    "edge_spots": "edge spots: {}",
    "tested": "{} epoch tested",
    "niche_profile": "niche profile: {}",
    "counts": "counts {}",
    "embeddings": "embeddings {}",
}


def settings_of(setting: Setting) -> dict[str, Any]:
    """What decides a run's numbers besides its method.

    Returns:
        Values by name, the more important ones first. Settings of the model and of its training are there only
        where the model has them.
    """
    protocol = setting.protocol
    return {
        "dataset": setting.dataset,
        "test_dataset": setting.test_dataset,
        "protocol": protocol.name,
        "recipe": setting.recipe.name,
        "split": setting.split,
        "encoder": setting.cache.get("encoder"),
        "cache": identity_hash(setting.cache),
        "neighbors": setting.neighbors,
        "genes": setting.genes,
        "n_genes": setting.n_genes,
        "transform": setting.transform,
        **_finetuning_settings(setting),
        "slides": setting.slides,
        "counts": _digest_of(setting, "counts"),
        "embeddings": _digest_of(setting, "embeddings"),
        "panel": setting.panel,
        "panel_from": protocol.panel_from,
        "edge_spots": protocol.edge_spots,
        "tested": protocol.tested,
        "niche_profile": protocol.niche_profile,
        **{name: value for name, value in asdict(setting.recipe).items() if name != "name"},
        **model_settings(setting.model),
        **_training_settings(setting),
        "split_seed": setting.split_seed,
    }


def _digest_of(setting: Setting, part: str) -> str:
    """A short digest of the counts, or of the embeddings, of all slides that were read."""
    slides = {slide: digests.get(part) for slide, digests in setting.digests.items()}
    return short_hash(slides) if slides else NOT_RECORDED


def model_settings(model: ModelConfig) -> dict[str, Any]:
    """The settings of the model itself, whose names may mean something else in another model."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in asdict(model).items()}
    return {k: v for k, v in values.items() if k not in MADE_BY_DATA}


def _training_settings(setting: Setting) -> dict[str, Any]:
    """The settings of the training loop; a model without gradient steps depends on `seed` and `select_by` alone."""
    if get_model(setting.model_name).learns:
        return asdict(setting.fit)
    return {"seed": setting.fit.seed, "select_by": setting.fit.select_by}


def _finetuning_settings(setting: Setting) -> dict[str, Any]:
    """How the encoder was fine-tuned with the model; on cached embeddings 0 blocks were, and the rest is None.

    Embeddings of an encoder that was fine-tuned before are neither: it has an adapter, of as many blocks as it has.
    """
    finetuning = setting.finetuning
    return {
        "lora_layers": finetuning.lora.layers if finetuning else TUNED_BEFORE if is_tuned(setting.cache) else 0,
        "lora_rank": finetuning.lora.rank if finetuning else None,
        "lora_alpha": finetuning.lora.alpha if finetuning else None,
        "lora_dropout": finetuning.lora.dropout if finetuning else None,
        "tuning_start": finetuning.start if finetuning else None,
        "tuning_augment": finetuning.augment if finetuning else None,
        "tuning_precision": finetuning.precision if finetuning else None,
    }


def phrase(key: str, value: Any) -> str:
    """A setting in words, as labels have it: `18 neighbours`, `alpha 0.3`."""
    if key == "test_dataset" and value is None:
        return "own test slides"
    if key == "seed" and isinstance(value, str):  # of several
        return value
    if key == "split_seed" and value is None:
        return "splits by the seed"
    if key == "split" and value == WITHIN:
        return WITHIN_SLICES
    if key == "slides":
        value = len(value)
    elif key == "panel":
        value = value[:8] or "of each fold"
    elif key in ("genes", "split"):
        value = Path(str(value)).name
    return PHRASES.get(key, f"{key.replace('_', ' ')} {{}}").format(value)
