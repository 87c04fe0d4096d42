"""Files of splits: a folder with CSVs, or a JSON file, read as rows that name the slides of each part."""

from __future__ import annotations

from pathlib import Path

from hist_cache.errors import InputError
from hist_cache.texts import first_names, read_csv, read_json

NamedRows = list[tuple[str, dict[str, list[str]]]]
"""Name of a split, and the slide IDs of its parts: of train and test, and of val where the file has them."""


def csv_rows(folder: Path) -> NamedRows:
    """Read splits in the format of HEST-bench: `train_i.csv` and `test_i.csv` with a column sample_id.

    The val slides come from `val_i.csv` where that file is there.

    Args:
        folder: The folder of the files, or the folder above their folder `splits`.

    Raises:
        InputError: A file is missing or has no column sample_id.
    """
    csv_folder = folder / "splits" if (folder / "splits").is_dir() else folder
    stems = [file.stem.removeprefix("train_") for file in csv_folder.glob("train_*.csv")]
    numbers = sorted(int(stem) for stem in stems if stem.isdecimal())
    if not numbers:
        raise InputError(f"{folder}: no train_0.csv, train_1.csv, ... here; give a folder with HEST-bench splits")
    named: NamedRows = []
    for i in numbers:
        row = {part: _sample_ids(csv_folder / f"{part}_{i}.csv") for part in ("train", "test")}
        if (csv_folder / f"val_{i}.csv").exists():
            row["val"] = _sample_ids(csv_folder / f"val_{i}.csv")
        named.append((f"{folder.name}-{i}", row))
    return named


def _sample_ids(file: Path) -> list[str]:
    if not file.is_file():
        raise InputError(f"{file}: not there; every train_i.csv needs its test_i.csv")
    try:
        names, rows = read_csv(file)
    except ValueError as error:
        raise InputError(f"{file}: {error}") from error
    if "sample_id" not in names:
        raise InputError(f"{file}: no column sample_id; its columns are {first_names(names, 25) or 'none'}")
    return list(dict.fromkeys(row["sample_id"] for row in rows))


def json_rows(file: Path) -> NamedRows:
    """Read splits from a JSON list of `{"train": [...], "val": [...], "test": [...]}`, where "val" may be left out.

    Raises:
        InputError: The file is not such a list.
    """
    try:
        rows = read_json(file)
    except ValueError as error:
        raise InputError(f"{file}: {error}") from error
    format_error = InputError(f'{file}: give a list of {{"train": [ids], "val": [ids], "test": [ids]}}')
    if not isinstance(rows, list) or not rows:
        raise format_error
    for row in rows:
        if not isinstance(row, dict) or not {"train", "test"} <= set(row) <= {"train", "val", "test"}:
            raise format_error
        if not all(isinstance(ids, list) and all(isinstance(i, str) for i in ids) for ids in row.values()):
            raise format_error
    return [(f"{file.stem}-{i}", row) for i, row in enumerate(rows)]
