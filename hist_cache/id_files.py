"""Slide IDs from a file, one a line: for more of them than a command line takes."""

from __future__ import annotations

import os
from pathlib import Path

from hist_cache.datasets import check_slide_name, parse_ids
from hist_cache.errors import InputError
from hist_cache.texts import read_text


def read_ids(text: str) -> list[str]:
    """Return the slides that --ids names: those in a file of that name, else those of the list itself.

    Args:
        text: A file with one ID a line, where empty lines and what follows a # do not count; or a list as for
            `parse_ids`.

    Raises:
        InputError: The file cannot be read, has no IDs, or has one twice; or the list has an error.
    """
    file = Path(text)
    if not os.path.isfile(file):  # Path.is_file fails for a list that is too long for a file's name
        if "/" in text or text.endswith(".txt"):
            raise InputError(f"--ids {text}: no such file; give a file with one slide id a line, or ids such as SPA138")
        return parse_ids(text)
    try:
        lines = [line.partition("#")[0].strip() for line in read_text(file).splitlines()]
    except ValueError as error:
        raise InputError(f"--ids {file}: {error}") from error
    first: dict[str, int] = {}
    for number, slide in enumerate(lines, 1):
        if not slide:
            continue
        if slide in first:
            raise InputError(f"--ids {file}: {slide} is in line {first[slide]} and in line {number}; keep one of them")
        first[check_slide_name(slide)] = number
    if not first:
        raise InputError(f"--ids {file}: no slide ids in it; write one a line")
    return list(first)
