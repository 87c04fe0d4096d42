"""A run's settings read from its config.json: flat, by name, and in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hist_cache.fingerprint import identity_hash
from train.models.registry import DEFAULT_MODEL, model_entries

RANKING = (  # runs are put in order by these settings, then by the others
    *("dataset", "test_dataset", "protocol", "split", "lora_layers", "genes", "n_genes", "transform", "neighbors"),
)
DATA = (  # settings on which data and baselines depend
    *("dataset", "test_dataset", "split", "encoder", "cache", "slides", "neighbors", "genes", "n_genes", "panel"),
    *("transform", "panel_from", "edge_spots", "seed"),
)
TRUTH = ("dataset", "test_dataset", "genes", "n_genes", "panel", "transform", "panel_from", "edge_spots")
MADE_BY_DATA = ("embedding_width", "n_genes")  # entries of "model" that follow from data
PHRASES = {
    "dataset": "{}",
    "test_dataset": "tested on {}",
    "protocol": "{} protocol",
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
}


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """What decides a run's numbers besides its method.

    Args:
        config: a fold's config.json.

    Returns:
        Values by name, the more important ones first. Settings of the model and of its training are there only
        where the model has them.
    """
    protocol, cache = config["protocol"], config["cache"]
    settings = {
        "dataset": config["dataset"],
        "test_dataset": config.get("test_dataset"),
        "protocol": protocol["name"],
        "split": config.get("split_kind", "default"),
        "encoder": cache.get("encoder"),
        "cache": identity_hash(cache),
        "neighbors": config["neighbors"],
        "genes": config["genes"],
        "n_genes": config["n_genes"],
        "transform": config["transform"],
        **_finetuning(config.get("tuning")),
        "slides": tuple(config["slides"]),
        "panel": config["panel"],
    }
    settings |= {k: protocol.get(k) for k in ("panel_from", "edge_spots", "tested")}
    return settings | model_settings(config) | _training_settings(config)


def model_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the model itself, whose names may mean something else in another model."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in (config["model"] or {}).items()}
    return {k: v for k, v in values.items() if k not in MADE_BY_DATA}


def _training_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the training loop; a model without gradient steps depends on the seed alone."""
    name = config.get("model_name", DEFAULT_MODEL)
    learns = all(entry.learns for entry in model_entries() if entry.name == name)
    return {k: v for k, v in (config["loop"] or {}).items() if learns or k == "seed"}


def _finetuning(tuning: dict[str, Any] | None) -> dict[str, Any]:
    """How the encoder was fine-tuned; on cached embeddings 0 blocks were, and the rest is None."""
    lora = tuning["lora"] if tuning else {}
    settings = {f"lora_{k}": lora.get(k) for k in ("layers", "rank", "alpha", "dropout")}
    settings |= {f"tuning_{k}": tuning.get(k) if tuning else None for k in ("start", "augment", "precision")}
    return settings | {"lora_layers": settings["lora_layers"] or 0}


def phrase(key: str, value: Any) -> str:
    """A setting in words, as labels have it: `18 neighbours`, `alpha 0.3`."""
    if key == "test_dataset" and value is None:
        return "own test slides"
    if key == "slides":
        value = len(value)
    elif key == "panel":
        value = value[:8] or "of each fold"
    elif key in ("genes", "split"):
        value = Path(str(value)).name
    return PHRASES.get(key, f"{key.replace('_', ' ')} {{}}").format(value)
