"""The paper's own numbers, which tables print beside ours (facts in published_results.json)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

STATUS_TABLE, P_VALUE_TABLE, GENE_TABLE, REGION_TABLE = 2, 4, 11, 12  # tables of the paper that have other metrics
RESULTS_FILE = Path(__file__).with_name("published_results.json")
END_TO_END = 11  # blocks that LoRA adapts in the published runs, unless a row says otherwise
FROZEN = 0  # blocks of a frozen encoder (table 14), which a run on cached embeddings is compared with
COST_NAMES = {  # in the file -> in a run's cost.json
    "memory_gb": "peak_memory_gb",
    "train_s_per_epoch": "train_s_per_epoch",
    "inference_s_per_epoch": "inference_s",
}

METHODS = {"triplex": "TRIPLEX", "stnet": "ST-Net", "bleep": "BLEEP", "stem": "Stem"}  # others than HiST
METHOD_ENCODERS = {  # with which they were published: a run on cached embeddings is comparable with none of them
    **dict.fromkeys(("TRIPLEX", "ST-Net", "BLEEP"), "encoder trained"),
    "Stem": "UNI and CONCH, frozen",
}

Numbers = dict[str, tuple[float, float | None]]
"""Mean and standard deviation (None where none is given) by metric."""


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(RESULTS_FILE.read_text(encoding="utf-8"))
    return content


def published_rows() -> tuple[dict[str, Any], ...]:
    """All rows of the file: table, method, dataset, variant and other settings, values."""
    return tuple(_content()["rows"])


def published_numbers(
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
    """What was published for HiST in one setting.

    Args:
        dataset: name of the dataset.
        variant: name of the variant.
        genes: rule that chose the gene panel.
        n_genes: size of the panel.
        split_kind: "default" means the published slide splits.
        neighbors: spots around a spot that its niche holds.
        test_dataset: name of another dataset that was tested on, if any.
        table: number of a table of the paper, preferred where tables disagree; then the others in the paper's order
            are, then the summary of HyperST.
        lora_layers: blocks of the encoder that were fine-tuned.

    Returns:
        Mean and standard deviation by metric; empty where nothing was published.
    """
    setting = {
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
    return _merge([row for row in published_rows() if all(row.get(k) == v for k, v in setting.items())], table)


def published_cost(dataset: str, n_genes: int = 200, table: int | None = None) -> Numbers:
    """What was published of the cost of HiST, trained end to end (tables 5 and 9).

    Args:
        dataset: name of the dataset.
        n_genes: size of the gene panel.
        table: number of a table of the paper, preferred where tables disagree.

    Returns:
        Peak memory in GB, seconds for an epoch and seconds of inference, by their names in cost.json.
    """
    rows = [
        row
        for row in published_rows()
        if (row["method"], row.get("dataset"), row.get("n_genes")) == ("hist", dataset, n_genes)
        and "memory_gb" in row["values"]
    ]
    return {COST_NAMES[k]: v for k, v in _merge(rows, table).items() if k in COST_NAMES}


def published_methods(
    dataset: str,
    genes: str = "hmhvg",
    n_genes: int = 200,
    split_kind: str = "default",
    test_dataset: str | None = None,
    table: int | None = None,
) -> dict[str, Numbers]:
    """What was published for other methods on the same data; the arguments are those of `published_numbers`.

    Returns:
        Numbers by the method's name; methods of which nothing was published are left out.
    """
    setting = {"dataset": dataset, "genes": genes, "n_genes": n_genes, "test_dataset": test_dataset}
    setting["split"] = "slide" if split_kind == "default" else split_kind
    return _by_method([row for row in published_rows() if all(row.get(k) == v for k, v in setting.items())], table)


def published_method_costs(dataset: str, n_genes: int = 200) -> dict[str, Numbers]:
    """What was published of the cost of other methods (table 5), by the method's name and the names in cost.json."""
    rows = [
        row
        for row in published_rows()
        if (row.get("dataset"), row.get("n_genes")) == (dataset, n_genes) and "memory_gb" in row["values"]
    ]
    costs = _by_method(rows, None)
    return {name: {COST_NAMES[k]: v for k, v in numbers.items() if k in COST_NAMES} for name, numbers in costs.items()}


def published_improvements(table: int, dataset: str, method: str) -> dict[str, dict[str, str]]:
    """What was published of HiST's improvement over another method, in percent with p-values (tables 4 and 12).

    Args:
        table: number of the paper's table.
        dataset: name of the dataset.
        method: name of the other method's model here.

    Returns:
        Text by metric, such as `+2.83 % (0.119)`, by gene; "" stands for all genes. Empty where nothing was published.
    """
    key = {"table": table, "dataset": dataset, "method": method}
    rows = _content()["improvements"]
    return {row.get("gene", ""): row["values"] for row in rows if all(row.get(k) == v for k, v in key.items())}


def published_status() -> dict[str, Numbers]:
    """AUROC of microsatellite status from predicted expression (table 2), by method."""
    rows = [row for row in published_rows() if "auroc_mss" in row["values"]]
    return _by_method(rows, None) | {"HiST": _merge([row for row in rows if row["method"] == "hist"], None)}


def has_published(dataset: str) -> bool:
    """Whether anything was published of a dataset."""
    return any(row.get("dataset") == dataset for row in published_rows())


def _by_method(rows: list[dict[str, Any]], table: int | None) -> dict[str, Numbers]:
    of_method = {title: [row for row in rows if row["method"] == name] for name, title in METHODS.items()}
    return {title: _merge(own, table) for title, own in of_method.items() if own}


def _merge(rows: list[dict[str, Any]], table: int | None) -> Numbers:
    """The values of all rows; of a metric that several have, those of the preferred table."""
    ordered = sorted(rows, key=lambda row: (row["table"] != table, not isinstance(row["table"], int)))
    numbers: Numbers = {}
    for row in ordered:
        for metric, (mean, *std) in row["values"].items():
            numbers.setdefault(metric, (mean, std[0] if std else None))
    return numbers
