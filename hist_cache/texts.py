"""Text files that users write or other programs made: read whole, within a limit of size, and names within them.

Whatever is wrong with such a file is a `ValueError` of one line; the caller knows what to call the file.
"""

from __future__ import annotations

import csv
import difflib
import json
import tomllib
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MAX_BYTES = 100_000_000  # no list of splits or genes and no metadata table is larger
MAX_NAME = 300  # characters; names stand in tables, figures and messages
BAD_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")  # of Unicode: control characters, lone surrogates, separators of lines


def read_text(file: Path) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: It cannot be read, is too large, or is not UTF-8.
    """
    try:
        if not file.is_file() and not file.is_fifo():
            raise ValueError("not a file" if file.exists() else "no such file")
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(error.strerror or type(error).__name__) from error
    if len(content) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES / 1e6:g} MB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not text in UTF-8 (byte {error.start})") from error


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: It cannot be read, is not JSON, or is nested too deep.
    """
    text = read_text(file)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("not JSON that can be read (nested too deep)") from error
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error


def read_toml(file: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ValueError: It cannot be read, is not TOML, or is nested too deep.
    """
    text = read_text(file)
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    except ValueError as error:
        raise ValueError(f"not TOML ({error})") from error


def read_csv(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read a CSV file with a head.

    Returns:
        The names of the columns, and the rows by name; a value that a row lacks is an empty text.

    Raises:
        ValueError: It cannot be read.
    """
    rows = csv.DictReader(read_text(file).splitlines(keepends=True), restval="", restkey="")
    try:
        names = [str(name) for name in rows.fieldnames or []]
        return names, [{name: row[name] for name in names} for row in rows]
    except csv.Error as error:
        raise ValueError(f"not CSV ({error})") from error


def shortened(text: str, longest: int = 60) -> str:
    """Return a text that is not too long for a message."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def first_names(names: Sequence[str], most: int = 6) -> str:
    """Return the first of some names as one text, with dots where there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def did_you_mean(name: str, names: Iterable[str], most: int = 1) -> str:
    """Return ` (did you mean X?)` with the most similar of some names, for messages; "" where none is similar."""
    near = nearest_names(name, names, most)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def nearest_names(name: str, names: Iterable[str], most: int = 1) -> list[str]:
    """Return the most similar of some names, whatever their case; none where none is similar."""
    by_lower = {known.lower(): known for known in names}
    return [by_lower[text] for text in difflib.get_close_matches(name[:MAX_NAME].lower(), by_lower, n=most)]


def bad_name(names: Iterable[str]) -> str | None:
    """Describe the first name that cannot be stored or shown; None where all can."""
    for name in names:
        if not name:
            return "an empty name"
        if len(name) > MAX_NAME:
            return f"a name of {len(name):,} characters ({name[:20]}...)"
        if any(unicodedata.category(c) in BAD_CATEGORIES for c in name):
            return f"a name with control characters ({name[:40]!a})"
    return None
