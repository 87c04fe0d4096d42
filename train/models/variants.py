"""Variants (ablations) of the model: rows of coefficients, read from variants.toml and from the user's own file."""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from hist_cache.errors import InputError
from hist_cache.own_tables import own_rows, own_tables
from hist_cache.texts import did_you_mean
from train.models.alignment import FourFlags, FourWeights, Geometry, Level, Terms

Decoder = Literal["both", "spot", "niche"]

VARIANTS_FILE = Path(__file__).with_name("variants.toml")

_REQUIRED = ("description", "contrast", "entail")
_OPTIONAL = ("etas", "reverse", "geometry", "main", "decoder", "alpha_scale")


@dataclass(frozen=True)
class Variant:
    """One row of the table of variants."""

    name: str
    description: str
    """One line."""
    terms: Terms
    """Weights of contrast and entailment, and the geometry."""
    decoder: Decoder = "both"
    """Which image embeddings the decoder reads."""
    alpha_scale: float = 1.0
    """Multiplies alpha (Eq. 11); at 0 contrast and entailment need not be computed."""
    own_etas: bool = False
    """Whether the row gives etas itself. A protocol then does not change them."""

    def as_dict(self) -> dict[str, Any]:
        """Every field that changes results, for the configuration of a run; the description is left out."""
        return {k: v for k, v in asdict(self).items() if k != "description"}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Variant:
        """The variant of a dictionary that `as_dict` returned, perhaps by way of JSON; its description is empty."""
        terms: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["terms"].items()}
        row: dict[str, Any] = values | {"terms": Terms(**terms), "description": ""}
        return cls(**row)


def load_variants(table: Path = VARIANTS_FILE) -> dict[str, Variant]:
    """Read all variants of a table.

    Args:
        table: a TOML file with one section per variant; the head of variants.toml explains the fields.

    Returns:
        The variants by name, in the order of the table.

    Raises:
        InputError: the file or a row of it cannot be read; the message names the file, the row and the field.
    """
    try:
        rows = tomllib.loads(table.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{table}: cannot read the table of variants: {error}") from error
    return {name: _variant(f"{table}: [{name}]", name, row) for name, row in rows.items()}


def all_variants() -> dict[str, Variant]:
    """The variants of this program, then the user's own, by name; `InputError` where a row of his is wrong."""
    place = own_tables().place
    return load_variants() | {k: _variant(place("variants", k), k, row) for k, row in own_rows("variants").items()}


def named_variants(text: str) -> list[Variant]:
    """The variants that a text such as `no_hea,clip` names, in that order, or all of the program's for `all`.

    Raises:
        InputError: a name is unknown; the message lists the known ones.
    """
    if text == "all":
        return list(load_variants().values())
    return [get_variant(name) for name in text.split(",")]


def get_variant(name: str) -> Variant:
    """The variant of this name.

    Raises:
        InputError: the name is unknown; the message lists the known ones.
    """
    variants = all_variants()
    if name not in variants:
        raise InputError(f"unknown variant {name!r}{did_you_mean(name, variants)}; known are {', '.join(variants)}")
    return variants[name]


def _variant(place: str, name: str, row: Any) -> Variant:
    """One checked row; `place` is the file and the row, for error messages."""
    _check_fields(place, row)
    geometry = _choice(place, "geometry", row.get("geometry", "lorentz"), get_args(Geometry))
    decoder = _choice(place, "decoder", row.get("decoder", "both"), get_args(Decoder))
    if not isinstance(row["description"], str):
        raise InputError(f"{place}: description is not a text")
    terms = Terms(
        contrast=_weights(place, "contrast", row["contrast"]),
        entail=_weights(place, "entail", row["entail"]),
        etas=_weights(place, "etas", row.get("etas", [1.0] * 4)),
        reverse=_flags(place, row.get("reverse", [False] * 4)),
        geometry=geometry,
        main=_choice(place, "main", row.get("main", "spot"), get_args(Level)),
    )
    scale = row.get("alpha_scale", 1.0)
    if not _is_weight(scale):
        raise InputError(f"{place}: alpha_scale is not a number of at least 0: {scale!r}")
    return Variant(name, row["description"], terms, decoder, float(scale), "etas" in row)


def _check_fields(place: str, row: Any) -> None:
    """InputError if a row is not a section, has an unknown field, or lacks a required one."""
    if not isinstance(row, dict):
        raise InputError(f"{place}: not a section of fields")
    unknown_fields = sorted(set(row) - {*_REQUIRED, *_OPTIONAL})
    missing_fields = [field for field in _REQUIRED if field not in row]
    if unknown_fields or missing_fields:
        problem = f"unknown field {unknown_fields[0]}" if unknown_fields else f"no field {missing_fields[0]}"
        raise InputError(f"{place}: {problem}; needed are {', '.join(_REQUIRED)}, allowed {', '.join(_OPTIONAL)}")


def _is_weight(value: object) -> bool:
    """Whether a value is a finite number of at least 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _weights(place: str, field: str, values: Any) -> FourWeights:
    if not isinstance(values, list) or len(values) != 4 or not all(map(_is_weight, values)):
        raise InputError(f"{place}: {field} is not four numbers of at least 0: {values!r}")
    a, b, c, d = map(float, values)
    return a, b, c, d


def _flags(place: str, values: Any) -> FourFlags:
    if not isinstance(values, list) or len(values) != 4 or not all(isinstance(v, bool) for v in values):
        raise InputError(f"{place}: reverse is not four of true and false: {values!r}")
    a, b, c, d = values
    return a, b, c, d


def _choice(place: str, field: str, value: Any, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise InputError(f"{place}: {field} is {value!r}, not one of {', '.join(allowed)}")
    return value
