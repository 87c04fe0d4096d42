"""Variants (ablations): rows of coefficients, read from variants.toml."""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from hist_cache.errors import InputError
from train.models.alignment import Geometry, Level, Terms

Decoder = Literal["both", "spot", "niche"]

TABLE = Path(__file__).with_name("variants.toml")
REQUIRED = ("description", "contrast", "entail")
OPTIONAL = ("etas", "reverse", "geometry", "main", "decoder", "alpha_scale")


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

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
    """Whether its row gives etas, which a protocol then leaves alone."""

    def as_dict(self) -> dict[str, Any]:
        """All that decides numbers, for a run's configuration; `Variant.from_dict` is the reverse."""
        return {k: v for k, v in asdict(self).items() if k != "description"}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Variant:
        fours: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["terms"].items()}
        row: dict[str, Any] = values | {"terms": Terms(**fours), "description": ""}
        return cls(**row)


def load_variants(table: Path = TABLE) -> dict[str, Variant]:
    """All variants by name, in the table's order.

    Raises InputError for a row that cannot be read, naming the file, the row and the field.
    """
    try:
        rows = tomllib.loads(table.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{table}: cannot read the table of variants: {error}") from error
    return {name: _variant(f"{table}: [{name}]", name, row) for name, row in rows.items()}


def named_variants(text: str) -> list[Variant]:
    """`no_hea,clip`, or `all`; raises InputError listing the names on an unknown one."""
    if text == "all":
        return list(load_variants().values())
    return [get_variant(name) for name in text.split(",")]


def get_variant(name: str) -> Variant:
    """The variant called `name`; raises InputError listing the names on an unknown one."""
    variants = load_variants()
    if name not in variants:
        raise InputError(f"unknown variant {name!r}; known are {', '.join(variants)}")
    return variants[name]


def _variant(where: str, name: str, row: Any) -> Variant:
    if not isinstance(row, dict):
        raise InputError(f"{where}: not a section of fields")
    unknown = sorted(set(row) - {*REQUIRED, *OPTIONAL})
    missing = [field for field in REQUIRED if field not in row]
    if unknown or missing:
        problem = f"unknown field {unknown[0]}" if unknown else f"no field {missing[0]}"
        raise InputError(f"{where}: {problem}; needed are {', '.join(REQUIRED)}, allowed {', '.join(OPTIONAL)}")
    geometry = _choice(where, "geometry", row.get("geometry", "lorentz"), get_args(Geometry))
    decoder = _choice(where, "decoder", row.get("decoder", "both"), get_args(Decoder))
    if not isinstance(row["description"], str):
        raise InputError(f"{where}: description is not a text")
    terms = Terms(
        contrast=_weights(where, "contrast", row["contrast"]),
        entail=_weights(where, "entail", row["entail"]),
        etas=_weights(where, "etas", row.get("etas", [1.0] * 4)),
        reverse=_flags(where, row.get("reverse", [False] * 4)),
        geometry=geometry,
        main=_choice(where, "main", row.get("main", "spot"), get_args(Level)),
    )
    scale = row.get("alpha_scale", 1.0)
    if not _is_weight(scale):
        raise InputError(f"{where}: alpha_scale is not a number of at least 0: {scale!r}")
    return Variant(name, row["description"], terms, decoder, float(scale), "etas" in row)


def _is_weight(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0  # type: ignore[arg-type,operator]


def _weights(where: str, field: str, values: Any) -> tuple[float, float, float, float]:
    if not isinstance(values, list) or len(values) != 4 or not all(map(_is_weight, values)):
        raise InputError(f"{where}: {field} is not four numbers of at least 0: {values!r}")
    a, b, c, d = map(float, values)
    return a, b, c, d


def _flags(where: str, values: Any) -> tuple[bool, bool, bool, bool]:
    if not isinstance(values, list) or len(values) != 4 or not all(isinstance(v, bool) for v in values):
        raise InputError(f"{where}: reverse is not four of true and false: {values!r}")
    a, b, c, d = values
    return a, b, c, d


def _choice(where: str, field: str, value: Any, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise InputError(f"{where}: {field} is {value!r}, not one of {', '.join(allowed)}")
    return value
