"""`--config` files: YAML with the names of options and their values, turned into words of a command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hist_cache.errors import InputError, one_line
from hist_cache.texts import did_you_mean, read_text

MAX_CHARACTERS = 1_000_000  # a file with every option has 3,000


def read_config(file: Path, kinds: Mapping[str, Any]) -> list[str]:
    """Read the options of a file as words of a command line. Null and false say what leaving an option out says.

    Args:
        file: The file; a pipe too.
        kinds: Names and types of all options there are.

    Raises:
        InputError: The file cannot be read, or names something else than options and their values.
    """
    values = _read(file)
    words = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in kinds:
            raise InputError(f"--config {file}: no option {name[:60]!a}{did_you_mean(name, kinds)}")
        if value is None or value is False:
            continue
        flag = f"--{name.replace('_', '-')}"
        if kinds[name] is bool:
            if value is not True:
                raise InputError(f"--config {file}: {name}: must be true or false")
            words.append(flag)
        elif isinstance(value, list) and kinds[name] == tuple[str, ...] and all(isinstance(v, str) for v in value):
            words += value
        elif isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InputError(f"--config {file}: {name}: must be a text or a number")
        else:
            words.append(f"{flag}={value}")
    return words


def _read(file: Path) -> dict[Any, Any]:
    import yaml

    try:
        text = read_text(file)
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"larger than {MAX_CHARACTERS:,} characters")
        values = yaml.safe_load(text)
    except Exception as error:  # PyYAML raises errors of its own, and others for dates, numbers and depth
        raise InputError(f"--config {file}: not readable as YAML ({one_line(error)})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"--config {file}: must hold options and their values, such as 'epochs: 50'")
    return values
