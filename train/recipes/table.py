"""Recipes by name: rows of recipes.toml, of the user's own file, and of `--recipe-file`."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from hist_cache.errors import InputError
from hist_cache.own_tables import own_rows
from hist_cache.texts import bad_name, did_you_mean, read_toml, shortened

RECIPES_FILE = Path(__file__).with_name("recipes.toml")
ROW_KEYS = ("description", "options")


@cache
def _program_rows() -> dict[str, Any]:
    return tomllib.loads(RECIPES_FILE.read_text("utf-8"))


def recipe_names() -> list[str]:
    """The recipes of this program, in the order of their table."""
    return list(_program_rows())


def recipe_options(name: str, file: Path | None = None) -> dict[str, Any]:
    """The options of hist-train that a recipe sets, by name.

    Args:
        name: Of the recipe.
        file: Of further recipes, beside those of the user's own file.

    Raises:
        InputError: There is no recipe of this name, or the file is not one of recipes.
    """
    rows = _program_rows() | own_rows("recipes") | (read_rows(file) if file else {})
    if name not in rows:
        raise InputError(f"--recipe {name}{did_you_mean(name, rows)}: there are {', '.join(rows)}")
    return dict(rows[name].get("options", {}))


def read_rows(file: Path) -> dict[str, Any]:
    """Recipes that a user wrote; `InputError` in one line where the file is not like recipes.toml."""
    try:
        rows = read_toml(file)
    except ValueError as error:
        raise InputError(f"--recipe-file {file}: {error}") from error
    for name, row in rows.items():
        if problem := _problem(name, row):
            raise InputError(
                f"--recipe-file {file}: {shortened(repr(name))} {problem}; give tables [NAME.options] with options of "
                "hist-train"
            )
    return rows


def _problem(name: str, row: object) -> str | None:
    """What keeps an entry of a user's file from being a recipe."""
    if name in _program_rows():
        return "has the name of a recipe of this program"
    if name in own_rows("recipes"):
        return "has the name of a recipe in hist.toml"
    if not name.strip() or "," in name or bad_name([name]):
        return "cannot be given as --recipe"
    if not isinstance(row, dict) or not isinstance(row.get("options", {}), dict):
        return "is no recipe"
    if foreign := [key for key in row if key not in ROW_KEYS]:
        return f"has the entry {shortened(repr(foreign[0]))}"
    return None
