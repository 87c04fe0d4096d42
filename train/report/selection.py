"""Which runs a table of the paper is about."""

from __future__ import annotations

from typing import Any

from hist_cache.errors import InputError
from train.experiments.grid import table_row
from train.report.results import Results, RunResult

OPTIONS = {"ablation": "variant", "neighbors": "neighbors", "genes": "genes", "n_genes": "n_genes"}
OPTIONS |= {"split": "split", "test_dataset": "test_dataset", "lora_layers": "lora_layers"}
USUAL = {"variant": ("full",), "neighbors": ("6",), "genes": ("hmhvg",), "split": ("default", "slide")}
USUAL |= {"n_genes": ("200", "300"), "test_dataset": ("None",), "protocol": ("paper", "strict"), "transform": ("log2",)}


def runs_of_table(results: Results, number: int) -> Results:
    """Those runs that `hist-train --table number` would have made.

    What the table sets must be so; what it leaves open is the usual value where there are such runs. `InputError`
    for a table that is not there, or where no run is of it.
    """
    row = table_row(number)
    asked = {key: str(row[option]).split(",") for option, key in OPTIONS.items() if option in row}
    kept = [run for run in results.runs if all(_value(run, key) in values for key, values in asked.items())]
    if not kept:
        raise InputError(
            f"--table {number} ({row['title']}): none of the runs is of it; run hist-train --table {number} first"
        )
    for key, values in USUAL.items():
        if key not in asked:
            kept = [run for run in kept if _value(run, key) in values] or kept
    return results.only(kept)


def _value(run: RunResult, key: str) -> str:
    value: Any = run.variant if key == "variant" else run.settings[key]
    return str(value)
