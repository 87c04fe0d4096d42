"""What the cache keeps of a dataset of the user's own: its row, so that training needs no file beside the slides."""

from __future__ import annotations

import logging
from pathlib import Path

from hist_cache.datasets import dataset_names
from hist_cache.errors import InputError, WriteError
from hist_cache.files import write_json
from hist_cache.own_file import check_own_row
from hist_cache.own_tables import add_own_row, own_rows
from hist_cache.texts import read_json

log = logging.getLogger(__name__)

DATASET_FILE = "dataset.json"


def keep_dataset(root: Path, name: str) -> None:
    """Write the row of a user's dataset into its folder in the cache, unless it is there.

    Args:
        root: Folder of all caches.
        name: Of the dataset; nothing is written of one that has no row of the user's.
    """
    row, file = own_rows("datasets").get(name), root / name / DATASET_FILE
    if row is None or (file.exists() and _read(file) == row):
        return
    try:
        write_json(file, row)
    except WriteError as error:
        log.warning(f"{file}: {error.reason}, so hist-train needs hist.toml to know the dataset's patients and split")


def use_kept_dataset(root: Path, name: str) -> None:
    """Know a dataset by what the cache kept of it, where no table of the program and no file of the user's has it.

    Args:
        root: Folder of all caches.
        name: Of the dataset.

    Raises:
        InputError: The file is damaged.
    """
    file = root / name / DATASET_FILE
    if name in dataset_names() or not file.exists():
        return
    row = _read(file)
    check_own_row("datasets", name, row, str(file))
    add_own_row("datasets", name, row, str(file))
    log.info(f"{name}: patients and defaults as {file} has them, which hist-extract copied from hist.toml")


def _read(file: Path) -> dict[str, object]:
    try:
        row = read_json(file)
    except ValueError as error:
        raise InputError(f"{file}: {error}; delete it, and run hist-extract again") from error
    return row if isinstance(row, dict) else {}
