"""A run's settings read from its config.json: flat, by name, and in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hist_cache.fingerprint import short_hash

ORDER = (  # of runs
    *("dataset", "test_dataset", "protocol", "split", "lora_layers", "genes", "n_genes", "transform", "neighbors"),
)
DATA = (  # settings on which data and controls depend
    *("dataset", "test_dataset", "split", "encoder", "cache", "slides", "neighbors", "genes", "n_genes", "panel"),
    *("transform", "panel_from", "edge_spots", "seed"),
)
TRUTH = ("dataset", "test_dataset", "genes", "n_genes", "panel", "transform", "panel_from", "edge_spots")
WORDS = {
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
    """What decides a run's numbers besides its variant, by name, the more telling first."""
    protocol, cache = config["protocol"], config["cache"]
    found = {
        "dataset": config["dataset"],
        "test_dataset": config.get("test_dataset"),
        "protocol": protocol["name"],
        "split": config.get("split_kind", "default"),
        "encoder": cache.get("encoder"),
        "cache": short_hash(cache),
        "neighbors": config["neighbors"],
        "genes": config["genes"],
        "n_genes": config["n_genes"],
        "transform": config["transform"],
        **_tuning(config.get("tuning")),
        "slides": tuple(config["slides"]),
        "panel": config["panel"],
    }
    found |= {k: protocol.get(k) for k in ("panel_from", "edge_spots", "tested")}
    found |= {k: v for k, v in config["model"].items() if k not in ("embedding_width", "n_genes")}
    return found | config["loop"]


def _tuning(tuning: dict[str, Any] | None) -> dict[str, Any]:
    """How the encoder was tuned; 0 blocks and else None on cached embeddings."""
    lora = tuning["lora"] if tuning else {}
    found = {f"lora_{k}": lora.get(k) for k in ("layers", "rank", "alpha", "dropout")}
    found |= {f"tuning_{k}": tuning.get(k) if tuning else None for k in ("start", "augment", "precision")}
    return found | {"lora_layers": found["lora_layers"] or 0}


def phrase(key: str, value: Any) -> str:
    """`18 neighbours`, `alpha 0.3`."""
    if key == "test_dataset" and value is None:
        return "own test slides"
    if key == "slides":
        value = len(value)
    elif key == "panel":
        value = value[:8] or "of each fold"
    elif key in ("genes", "split"):
        value = Path(str(value)).name
    return WORDS.get(key, f"{key.replace('_', ' ')} {{}}").format(value)
