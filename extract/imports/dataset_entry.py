"""The entry of a dataset in `hist.toml` beside the data: `[datasets.NAME]` with the IDs of its slides."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hist_cache.errors import InputError
from hist_cache.files import write_text
from hist_cache.own_file import check_own_row
from hist_cache.texts import read_text

FILE_NAME = "hist.toml"
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
TABLE_LINE = re.compile(r"\s*\[")
IDS_LINE = re.compile(r"\s*ids\s*=")


def check_new_name(name: str) -> None:
    """Check the name of a dataset of one's own.

    Raises:
        InputError: It is no name of a folder, or one that the program has.
    """
    check_own_row("datasets", name, {"ids": ["A1"]}, f"--name {name}")


def add_to_dataset(root: Path, name: str, ids: Sequence[str]) -> Path:
    """Add slides to a dataset of `hist.toml`, which is made where it is missing; the rest of the file stays as it is.

    Args:
        root: The data root.
        name: Name of the dataset.
        ids: IDs of the slides; those that the dataset has already are not added.

    Returns:
        The file.

    Raises:
        InputError: The file cannot be read, or not be changed without changing other parts of it.
    """
    file = root / FILE_NAME
    try:
        before = read_text(file) if file.exists() else ""
        values = tomllib.loads(before)
    except ValueError as error:
        raise InputError(f"{file}: not TOML that can be read ({error}); correct it") from error
    key = name if BARE_KEY.fullmatch(name) else json.dumps(name, ensure_ascii=False)
    datasets = values.get("datasets", {})
    entry = datasets.get(name) if isinstance(datasets, dict) else None
    known = entry.get("ids") if isinstance(entry, dict) else None
    wanted = list(dict.fromkeys([*(known if isinstance(known, list) else []), *ids]))
    after = _with_table(before, key, wanted) if entry is None else _with_ids(before, key, wanted)
    if not _says(after, values, name, wanted):
        raise InputError(f"{file}: change it by hand: ids = {json.dumps(wanted)} under [datasets.{key}]")
    write_text(file, after)
    return file


def _with_table(text: str, key: str, ids: list[str]) -> str:
    gap = "" if not text else "\n" if text.endswith("\n") else "\n\n"
    return f"{text}{gap}[datasets.{key}]\n{_ids_line(ids)}\n"


def _with_ids(text: str, key: str, ids: list[str]) -> str:
    """Replace the list of IDs below the head of a table."""
    lines = text.splitlines()
    head = re.compile(rf"\s*\[\s*datasets\s*\.\s*{re.escape(key)}\s*\]\s*(#.*)?")
    start = next((i for i, line in enumerate(lines) if head.fullmatch(line)), None)
    if start is None:
        return text
    rest = range(start + 1, len(lines))
    end = next((i for i in rest if TABLE_LINE.match(lines[i]) and _is_toml(lines[start:i])), len(lines))
    first = next((i for i in range(start + 1, end) if IDS_LINE.match(lines[i])), None)
    if first is None:
        return "\n".join([*lines[: start + 1], _ids_line(ids), *lines[start + 1 :]]) + "\n"
    last = next((i for i in range(first, end) if _is_toml(lines[first : i + 1])), first)
    return "\n".join([*lines[:first], _ids_line(ids), *lines[last + 1 :]]) + "\n"


def _ids_line(ids: list[str]) -> str:
    return f"ids = {json.dumps(ids, ensure_ascii=False)}"


def _is_toml(lines: list[str]) -> bool:
    try:
        tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError:
        return False
    return True


def _says(text: str, before: dict[str, Any], name: str, ids: list[str]) -> bool:
    """Whether a text has all that was there before, and the new IDs."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    datasets = before.get("datasets", {})
    if not isinstance(datasets, dict) or not isinstance(datasets.get(name, {}), dict):
        return False
    expected = before | {"datasets": datasets | {name: datasets.get(name, {}) | {"ids": ids}}}
    return values == expected
