"""Grids: options with several values, and the paper's tables by number, as a list of points."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

from hist_cache.errors import InputError
from hist_cache.lattice import RINGS
from train.data import Transform
from train.experiments.protocols import get_protocol
from train.models.variants import named_variants

TABLES = Path(__file__).with_name("tables.toml")


@dataclass(frozen=True)
class Point:
    """One combination of the options that may be lists."""

    ablation: str
    neighbors: int
    genes: str
    n_genes: int | None
    split: str | None
    protocol: str
    transform: Transform
    lora_layers: int = 0
    """Blocks of the encoder that are tuned; 0 trains on the cache."""


def points(config: Any) -> list[Point]:
    """Every combination of the listed options; variants vary fastest. `InputError` names the option and the value."""
    every = product(
        *(_list(config.protocol), _list(config.split), _list(config.genes), _numbers("n_genes", config.n_genes)),
        *(_list(config.transform), _numbers("neighbors", config.neighbors)),
        *(_numbers("lora_layers", config.lora_layers, least=0), named_variants(str(config.ablation))),
    )
    found = [
        Point(variant.name, neighbors, genes, n_genes, split, protocol, transform, layers * config.finetune_lora)
        for protocol, split, genes, n_genes, transform, neighbors, layers, variant in every
    ]
    for point in found:
        get_protocol(point.protocol)
        if point.neighbors not in RINGS:
            raise InputError(f"--neighbors {point.neighbors}: one of {', '.join(map(str, RINGS))} (rings 1, 2, 3)")
        if point.transform not in get_args(Transform):
            raise InputError(f"--transform {point.transform}: one of {', '.join(get_args(Transform))}")
    return list(dict.fromkeys(found))


def _list(value: Any) -> list[Any]:
    """`a,b` -> ["a", "b"]; None, an option that was not given, is one value."""
    if value is None:
        return [None]
    return [part.strip() for part in str(value).split(",") if part.strip()] or [""]


def _numbers(name: str, value: Any, least: int = 1) -> list[Any]:
    try:
        numbers = [v if v is None else int(v) for v in _list(value)]
    except ValueError:
        raise InputError(f"--{name.replace('_', '-')} {value}: a whole number, or several with commas") from None
    if any(n is not None and n < least for n in numbers):
        raise InputError(f"--{name.replace('_', '-')} {value}: must be {least} or more")
    return numbers


def table_row(number: int) -> dict[str, Any]:
    """A row of tables.toml; `InputError` for a table that is not there."""
    rows = tomllib.loads(TABLES.read_text("utf-8"))
    if str(number) not in rows:
        raise InputError(f"--table {number}: there are {', '.join(rows)}")
    row = rows[str(number)]
    return row


def table_options(number: int, given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The options that a table sets, without those given as something other than their default."""
    row = table_row(number)
    names = ("ablation", "neighbors", "genes", "n_genes", "split", "test_dataset", "finetune_lora", "lora_layers")
    return {k: row[k] for k in names if k in row and given[k] == defaults[k]}
