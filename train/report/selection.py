"""Which runs a table of the paper is about."""

from __future__ import annotations

from hist_cache.errors import InputError
from train.experiments.grid import table_row
from train.report.results import Results, RunResult

OPTION_SETTINGS = {  # option that a table sets -> the setting that it decides
    **{"ablation": "method", "neighbors": "neighbors", "genes": "genes", "n_genes": "n_genes"},
    **{"split": "split", "test_dataset": "test_dataset", "lora_layers": "lora_layers"},
}
USUAL_VALUES = {
    **{"method": ("full",), "neighbors": ("6",), "genes": ("hmhvg",), "split": ("default", "slide")},
    **{"n_genes": ("200", "300"), "test_dataset": ("None",), "protocol": ("paper", "strict"), "transform": ("log2",)},
}


def runs_of_table(results: Results, number: int) -> Results:
    """The runs that `hist-train --table number` would have made.

    A run has all settings that the table gives. Of a setting that the table leaves open, it has the usual value if
    there are such runs.

    Args:
        results: the runs to choose from.
        number: of the table in the paper.

    Raises:
        InputError: There is no such table, or none of the runs belongs to it.
    """
    row = table_row(number)
    given = {setting: str(row[option]).split(",") for option, setting in OPTION_SETTINGS.items() if option in row}
    runs = [run for run in results.runs if all(_value(run, key) in values for key, values in given.items())]
    if not runs:
        raise InputError(
            f"--table {number} ({row['title']}): none of the runs is of it; run hist-train --table {number} first"
        )
    for key, values in USUAL_VALUES.items():
        if key not in given:
            runs = [run for run in runs if _value(run, key) in values or _is_peer(run, key)] or runs
    return results.subset(runs)


def _value(run: RunResult, key: str) -> str:
    return run.method if key == "method" else str(run.settings[key])


def _is_peer(run: RunResult, key: str) -> bool:
    """Whether a run is of another model than HiST, which stands beside it where a table names no variants."""
    return key == "method" and run.variant is None
