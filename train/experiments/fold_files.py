"""The files of a fold read back and checked: whatever is wrong with one ends in a line that names it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hist_cache.checked import check_entries
from hist_cache.errors import InputError
from hist_cache.runs import COST, METRICS, RUN_ANEW, Fold
from hist_cache.splits import SPLIT_PARTS, Split
from train.metrics import check_metric_names

METRICS_ENTRIES: dict[str, Any] = {
    "pooled": dict[str, float],
    "slide_mean": dict[str, float],
    "slides": dict[str, dict[str, float]],
    "controls": dict[str, dict[str, float]],
}
METRICS_OPTIONAL: dict[str, Any] = {
    "complete_niches": dict[str, float] | None,
    "centered": dict[str, float],
    "controls_centered": dict[str, dict[str, float]],
    "ranks": dict[str, float],
    "ranks_slide_mean": dict[str, float],
    "n_spots": int,
    "n_complete_niches": int,
    "n_undefined_genes": int,
    "spots": dict[str, int],
    "best_epoch": int | None,
    "epochs": int,
    "warnings": list[str],
    "diverged": list[str],
    "model_digest": str,
}
COST_OPTIONAL: dict[str, Any] = {
    "train_s_per_epoch": float,
    "inference_s": float,
    "peak_memory_gb": float,
    "numbers_m": float,
    "device": str,
    "threads": int,
}


def read_metrics(folder: Path) -> dict[str, Any]:
    """The content of a fold's metrics.json; `InputError` with its path where it is something else."""
    values = Fold(folder).metrics
    with _checked(folder / METRICS, "not the metrics of a fold"):
        check_entries(values, METRICS_ENTRIES, METRICS_OPTIONAL)
        scopes = [values["pooled"], values["slide_mean"], values.get("complete_niches") or {}]
        scopes.append(values.get("centered", {}))
        check_metric_names({name for scope in (*scopes, *values["slides"].values()) for name in scope})
    return values


def read_cost(folder: Path) -> dict[str, Any]:
    """The content of a fold's cost.json, {} where there is none; `InputError` with its path where it is wrong."""
    if not (folder / COST).exists():
        return {}
    values = Fold(folder).cost
    with _checked(folder / COST, "not the cost of a fold"):
        check_entries(values, {"threads": int} if "device" in values else {}, COST_OPTIONAL)
    return values


def read_split(file: Path, config: Mapping[str, Any]) -> Split:
    """The split in the content of a config.json; `InputError` with its path where there is none."""
    with _checked(file, "not the configuration of a fold"):
        values = config["split"]
        check_entries(values, {part: list[str] for part in SPLIT_PARTS} | {"name": str}, {})
        train, val, test = (tuple(values[part]) for part in SPLIT_PARTS)
        return Split(train, val, test, values["name"])


@contextmanager
def _checked(file: Path, problem: str) -> Iterator[None]:
    """Turn what a wrong entry raises into an `InputError` with the file's path."""
    try:
        yield
    except KeyError as error:
        raise InputError(f"{file}: no {error} in it; {RUN_ANEW}") from None
    except (TypeError, ValueError, AttributeError, InputError) as error:
        raise InputError(f"{file}: {problem} ({type(error).__name__}: {error}); {RUN_ANEW}") from None
