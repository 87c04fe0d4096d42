"""hist.toml: the file of a user's own tables, found, read and checked as a whole before a command does anything.

Whatever is wrong with it ends in one line that names the file and the key. Nothing in it is executed. Which values
options may have is checked where the options are (`train.experiments.own_rows`, `sweeps.space`).
"""

from __future__ import annotations

import logging
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from hist_cache.checked import is_of
from hist_cache.datasets import check_own_dataset
from hist_cache.errors import InputError
from hist_cache.own_tables import OwnTables, set_own_tables
from hist_cache.texts import first_names, nearest_names, read_toml, shortened

log = logging.getLogger(__name__)

OWN_FILE, OWN_VARIABLE = "hist.toml", "HIST_TOML"
OWN_HELP = "your own datasets, encoders, variants, ... (default: $HIST_TOML, or hist.toml in the data root or here)"
NAME = re.compile(r"\w[\w.-]{0,119}")
RESERVED = ("all", "default")  # words that options and tables have
FOUR = tuple[float, float, float, float]
FOUR_FLAGS = tuple[bool, bool, bool, bool]
THREE = tuple[float, float, float]
# Arguments of timm that would read files or fetch weights; these are read by this program, from where it says.
FORBIDDEN_ARGUMENTS = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable"),
    *("exportable", "no_jit", "features_only"),
)


@dataclass(frozen=True)
class TableForm:
    """What a row of a table has.

    Attributes:
        file: The program's own table, from the folder of the packages.
        keys: Keys and the types of their values; {} for a table of tables with keys of their own choice.
        required: Keys that a row must have.
    """

    file: str
    keys: Mapping[str, Any]
    required: tuple[str, ...] = ()


FORMS = {
    "datasets": TableForm(
        "hist_cache/datasets.toml",
        {
            "ids": list[str],
            "title": str,
            "reference": str,
            "encoder": str,
            "split": Literal["slide", "patient", "loso"],
            "patients": dict[str, list[str]],
            "training": dict[str, Any],
        },
        ("ids",),
    ),
    "encoders": TableForm(
        "extract/encoders/registry.toml",
        {
            "repo": str,
            "files": list[str],
            "layout": Literal["timm", "dinov2"],
            "architecture": str,
            "arguments": dict[str, Any],
            "pooling": Literal["cls", "cls+mean"],
            "width": int,
            "input_size": int,
            "mean": THREE,
            "std": THREE,
            "interpolation": Literal["bilinear", "bicubic"],
            "licence": str,
            "gated": bool,
            "weights": Literal["pretrained", "random"],
        },
        ("architecture",),
    ),
    "variants": TableForm(
        "train/models/variants.toml",
        {
            "description": str,
            "contrast": FOUR,
            "entail": FOUR,
            "etas": FOUR,
            "reverse": FOUR_FLAGS,
            "geometry": Literal["lorentz", "euclidean"],
            "main": Literal["spot", "niche"],
            "decoder": Literal["both", "spot", "niche"],
            "alpha_scale": float,
        },
        ("description", "contrast", "entail"),
    ),
    "protocols": TableForm(
        "train/experiments/protocols.toml",
        {
            "description": str,
            "panel_from": Literal["all", "train"],
            "split": str,
            "edge_spots": Literal["keep", "drop"],
            "tested": Literal["best", "last"],
            "entail_scale": float,
            "etas": FOUR,
            "min_spot_um": float,
            "niche_profile": Literal["log_of_mean", "mean_of_logs"],
            "validate_on": Literal["next", "alike"],
            "options": dict[str, Any],
        },
    ),
    "recipes": TableForm("train/recipes/recipes.toml", {"description": str, "options": dict[str, Any]}),
    "spaces": TableForm("sweeps/spaces.toml", {}),
}


def use_own_tables(given: str | None, data_root: Path) -> None:
    """Read the user's own tables for this process, and log which file they are from.

    Args:
        given: The file that was asked for. Without one it is `$HIST_TOML`, `hist.toml` in the data root, or that in the
            working folder: the first there is.
        data_root: Folder of the slides, which may be absent.

    Raises:
        InputError: A file that was asked for is not there, or something in the file is wrong.
    """
    set_own_tables(OwnTables())  # those of an earlier command in this process
    if asked := given or os.environ.get(OWN_VARIABLE):
        file, others = Path(asked), []
    else:
        places = [data_root / OWN_FILE, Path(OWN_FILE)]
        existing = [path for path in places if path.exists()]
        if not existing:
            return
        file, others = existing[0], [path for path in existing[1:] if not path.samefile(existing[0])]
    tables = read_own_file(file, "--own " if given else f"${OWN_VARIABLE} " if asked else "")
    set_own_tables(tables)
    kinds = "; ".join(f"{table} {first_names(list(rows))}" for table, rows in tables.rows.items() if rows)
    log.info(f"{file}: {kinds or 'no tables'}" + "".join(f" (not read: {path.resolve()})" for path in others))


def read_own_file(file: Path, option: str = "") -> OwnTables:
    """Read a file of own tables and check all of it but the values of options.

    Args:
        file: The file.
        option: What named it, for messages.

    Raises:
        InputError: It cannot be read, or something in it is wrong.
    """
    try:
        content = read_toml(file)
    except ValueError as error:
        raise InputError(f"{option}{file}: {error}") from error
    for table, rows in content.items():
        _check_key(f"{file}", f"[{shortened(table)}]", table, list(FORMS))
        if not isinstance(rows, dict):
            raise InputError(f"{file}: {table} is no table; give [{table}.NAME]")
        for name, row in rows.items():
            check_own_row(table, name, row, f"{file}: [{table}.{shortened(name)}]")
    return OwnTables(str(file), content)


def check_own_row(table: str, name: str, row: Any, place: str) -> None:
    """Check a row of a table.

    Args:
        table: Its table.
        name: Its name.
        row: Its content.
        place: Where it stands, for messages.

    Raises:
        InputError: Something is wrong with it.
    """
    form = FORMS[table]
    if not NAME.fullmatch(name) or name in RESERVED:
        raise InputError(f"{place}: a name has letters, digits, '_', '-' and '.', and is not {' or '.join(RESERVED)}")
    if name in _program_names(table):
        raise InputError(f"{place}: this program has one of that name; give it another name")
    if not isinstance(row, dict):
        raise InputError(f"{place}: is no table but {shortened(repr(row))}")
    if not form.keys:
        _check_space(row, place)
        return
    for key, value in row.items():
        _check_key(place, key, key, list(form.keys))
        if not is_of(value, form.keys[key]):
            raise InputError(f"{place}: {key} is {shortened(repr(value))}; give {describe_type(form.keys[key])}")
    if missing := [key for key in form.required if key not in row]:
        raise InputError(f"{place}: has no {missing[0]}; needed {'is' if len(form.required) == 1 else 'are'} "
                         f"{', '.join(form.required)}")  # fmt: skip
    if table == "datasets":
        check_own_dataset(name, row, place)
    if table == "encoders":
        _check_encoder(row, place)


def _check_key(place: str, shown: str, key: str, known: list[str]) -> None:
    """`InputError` for a key that is not known."""
    if key not in known:
        near = nearest_names(key, known)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise InputError(f"{place}: no key {shortened(shown)}, {advice}")


def _check_encoder(row: Mapping[str, Any], place: str) -> None:
    """Refuse what would have timm fetch or read something by itself."""
    if not NAME.fullmatch(row["architecture"]):
        raise InputError(f"{place}: architecture {shortened(repr(row['architecture']))} is no name of a timm model")
    for key, value in row.get("arguments", {}).items():
        if key in FORBIDDEN_ARGUMENTS:
            raise InputError(f"{place}: arguments.{key} is not for a table; weights are given by --weights or repo")
        if not is_of(value, str | bool | int | float | list[int] | list[float]):
            raise InputError(f"{place}: arguments.{key} is {shortened(repr(value))}; give a text, a number or a list")
    for key in ("input_size", "width"):
        if key in row and row[key] < 1:
            raise InputError(f"{place}: {key} is {row[key]}; give 1 or more")
    if any(value <= 0 for value in row.get("std", ())):
        raise InputError(f"{place}: std is {list(row['std'])}; give numbers above 0")


def _check_space(row: Mapping[str, Any], place: str) -> None:
    if not row or not all(isinstance(parameter, dict) for parameter in row.values()):
        raise InputError(f"{place}: a space has tables of options, such as {place.split(': ')[-1][:-1]}.lr]")


def _program_names(table: str) -> list[str]:
    """The names of a table of the program."""
    home = Path(__file__).resolve().parents[1]
    return [*tomllib.loads((home / FORMS[table].file).read_text("utf-8"))]


def describe_type(hint: Any) -> str:
    """Say which values a key takes."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin is tuple:
        return f"{len(arguments)} {'of true and false' if arguments[0] is bool else 'numbers'}"
    if origin is list:
        return "a list of texts"
    if origin is dict:
        return "a table" + (" of lists of texts" if arguments[1] == list[str] else "")
    return {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}[hint]
