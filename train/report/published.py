"""The paper's own numbers, to stand beside ours (facts in published_results.json)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("published_results.json")
END_TO_END = 11  # blocks that LoRA adapts in the published runs, unless said otherwise
FROZEN = 0  # table 14: what a run on cached embeddings is to be compared with
COSTS = {
    "memory_gb": "peak_memory_gb",
    "train_s_per_epoch": "train_s_per_epoch",
    "inference_s_per_epoch": "inference_s",
}

Numbers = dict[str, tuple[float, float | None]]
"""Mean and standard deviation (None where none is given) by metric."""


@cache
def rows() -> tuple[dict[str, Any], ...]:
    """All published rows: table, method, dataset, variant, ..., values."""
    return tuple(json.loads(FILE.read_text(encoding="utf-8"))["rows"])


def published(
    dataset: str,
    variant: str,
    genes: str = "hmhvg",
    n_genes: int = 200,
    split_kind: str = "default",
    neighbors: int = 6,
    test_dataset: str | None = None,
    table: int | None = None,
    lora_layers: int = END_TO_END,
) -> Numbers:
    """What was published for HiST in this setting; {} where nothing was.

    split_kind "default" means the published slide splits. Where tables disagree, the one asked for is right, then
    the paper's in their order, then the HyperST summary's.
    """
    wanted = {
        "method": "hist",
        "dataset": dataset,
        "variant": variant,
        "genes": genes,
        "n_genes": n_genes,
        "split": "slide" if split_kind == "default" else split_kind,
        "neighbors": neighbors,
        "test_dataset": test_dataset,
        "lora_layers": lora_layers,
    }
    return _numbers([row for row in rows() if all(row.get(k) == v for k, v in wanted.items())], table)


def published_cost(dataset: str, n_genes: int = 200, table: int | None = None) -> Numbers:
    """Peak memory (GB), seconds an epoch and seconds of inference, end to end (tables 5 and 9), by our names."""
    found = [
        row
        for row in rows()
        if (row["method"], row.get("dataset"), row.get("n_genes")) == ("hist", dataset, n_genes)
        and "memory_gb" in row["values"]
    ]
    return {COSTS[k]: v for k, v in _numbers(found, table).items() if k in COSTS}


def _numbers(found: list[dict[str, Any]], table: int | None) -> Numbers:
    ordered = sorted(found, key=lambda row: (row["table"] != table, not isinstance(row["table"], int)))
    numbers: Numbers = {}
    for row in ordered:
        for metric, (mean, *std) in row["values"].items():
            numbers.setdefault(metric, (mean, std[0] if std else None))
    return numbers
