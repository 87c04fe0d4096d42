"""Grids: options with several values, and the paper's tables by number, as a list of points."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeVar, get_args

from hist_cache.errors import InputError
from hist_cache.lattice import RINGS
from hist_cache.options import SHARED, flag, number_lists, option_fields
from hist_cache.texts import did_you_mean
from hist_cache.values import read_numbers
from train.experiments.protocols import get_protocol
from train.expression import Transform
from train.fit.config import FitConfig
from train.models.registry import DEFAULT_MODEL, ModelEntry, model_entries, named_models
from train.models.variants import named_variants
from train.options import TrainOptions
from train.recipes.config import DEFAULT_RECIPE, RecipeConfig
from train.recipes.table import recipe_options

_O = TypeVar("_O", bound=TrainOptions)
TABLES_FILE = Path(__file__).with_name("tables.toml")
TABLE_OPTIONS = (
    *("model", "ablation", "neighbors", "genes", "n_genes", "split", "test_dataset"),
    *("finetune_lora", "lora_layers"),
)


@dataclass(frozen=True)
class Point:
    """One combination of the options that may be lists.

    Attributes:
        ablation: A variant's name; "" for a model that has none.
        n_genes: None takes the panel's own size.
        split: None takes the protocol's, or the dataset's.
        lora_layers: Blocks of the encoder that are fine-tuned. 0 trains on the cache; None takes as many as there are,
            11 at most.
        model: Its name.
        recipe: The name of a row of recipes.
        numbers: Those options of which several numbers were given, with one of them each: `("seed", 1), ("lr", 0.001)`.
    """

    ablation: str
    neighbors: int
    genes: str
    n_genes: int | None
    split: str | None
    protocol: str
    transform: Transform
    lora_layers: int | None = 0
    model: str = DEFAULT_MODEL
    recipe: str = DEFAULT_RECIPE
    numbers: tuple[tuple[str, float], ...] = ()


def points(options: TrainOptions) -> list[Point]:
    """Every combination of the listed options, in which models and variants vary fastest.

    Raises:
        InputError: Names the option and the value that is wrong.
    """
    combinations = product(
        *(_values(options.protocol), _values(options.recipe), _values(options.split)),
        *(_values(options.genes), _numbers("n_genes", options)),
        *(_values(options.transform), _numbers("neighbors", options), _lora_layers(options)),
        *(product(*_axes(options)), _methods(options)),
    )
    grid = [
        Point(
            *(ablation, neighbors, genes, n_genes, split, protocol, transform),
            *(layers if entry.learns else 0, entry.name, recipe, _used(numbers, entry)),
        )
        for protocol, recipe, split, genes, n_genes, transform, neighbors, layers, numbers, (entry, ablation) in (
            combinations
        )
    ]
    for point in grid:
        get_protocol(point.protocol)
        _check_recipe(point.recipe, options)
        if point.neighbors not in RINGS:
            raise InputError(f"--neighbors {point.neighbors}: one of {', '.join(map(str, RINGS))} (rings 1, 2, 3)")
        if point.transform not in (names := get_args(Transform)):
            near = did_you_mean(point.transform, names)
            raise InputError(f"--transform {point.transform}{near}: one of {', '.join(names)}")
    return list(dict.fromkeys(grid))


def _methods(options: TrainOptions) -> list[tuple[ModelEntry, str]]:
    """Each model with each of its variants, or with none; `InputError` for options that none of the models has."""

    def variants(entry: ModelEntry) -> Iterable[str]:
        return (v.name for v in named_variants(str(options.ablation))) if entry.has_variants else ("",)

    entries = named_models(options.model)
    if options.ablation != TrainOptions().ablation and not any(entry.has_variants for entry in entries):
        raise InputError(f"--ablation {options.ablation}: --model {options.model} has no variants; leave one out")
    if options.finetune_lora and not any(entry.learns for entry in entries):
        raise InputError(f"--finetune-lora: --model {options.model} is not trained by gradient steps; leave one out")
    used = {name for entry in entries for name in used_options(entry)}
    if foreign := sorted(set(options.config_values) - used):
        raise InputError(f"{flag(foreign[0])}: no option of --model {options.model}; leave one out")
    return [(entry, variant) for entry in entries for variant in variants(entry)]


def used_options(entry: ModelEntry) -> set[str]:
    """Names of the options of training, of recipes and of models that change anything of a model."""
    training = {f.name for f in option_fields(FitConfig)}
    recipe = {f.name for f in option_fields(RecipeConfig)} if entry.takes_recipe else set()
    if not entry.learns:  # it has no steps, and is the same for each seed
        training, recipe = {"seed", "select_by"}, recipe - {"ensemble"}
    return (training | recipe | {f.name for f in option_fields(entry.config)}) - set(entry.unused)


def listed_numbers(options: TrainOptions) -> dict[str, list[Any]]:
    """The options of which several numbers were given, such as `--lr 1e-3,1e-4`, with these; the seed first.

    Raises:
        InputError: One of them is no number of the option's range.
    """
    given, listed = options.given_values(), {}
    for name, (kind, within) in number_lists(type(options)).items():
        if isinstance(given.get(name), str):
            try:
                listed[name] = list(dict.fromkeys(read_numbers(given[name], kind, within)))
            except ValueError as error:
                raise InputError(f"{flag(name)} {error}") from None
    return listed


def options_at(point: Point, options: TrainOptions) -> TrainOptions:
    """The options with one number each: the point's, and the first where its model uses none of them."""
    first = {name: numbers[0] for name, numbers in listed_numbers(options).items()}
    return options.with_values(first | dict(point.numbers))


def first_seed(options: TrainOptions) -> int:
    """The seed, of several the first."""
    return int(listed_numbers(options).get("seed", [options.seed])[0])


def _axes(options: TrainOptions) -> list[list[tuple[str, Any]]]:
    return [[(name, number) for number in numbers] for name, numbers in listed_numbers(options).items()]


def _used(numbers: Iterable[tuple[str, Any]], entry: ModelEntry) -> tuple[tuple[str, Any], ...]:
    """Those numbers that change anything of a model."""
    used = used_options(entry)
    return tuple((name, number) for name, number in numbers if name in used)


def _check_recipe(name: str, options: TrainOptions) -> None:
    """`InputError` for a recipe that is not there, or that sets what is no option of any model or of training."""
    kinds = [RecipeConfig, FitConfig, *(entry.config for entry in model_entries())]
    known = {f.name for kind in kinds for f in option_fields(kind)} - SHARED  # the command's own always win
    if foreign := sorted(set(recipe_options(name, options.recipe_path)) - known):
        raise InputError(f"--recipe {name}: {foreign[0]} is no option that a recipe sets")


def _lora_layers(options: TrainOptions) -> list[int | None]:
    layers = _numbers("lora_layers", options, least=0)
    return layers if options.finetune_lora else [0]


def _values(value: Any) -> list[Any]:
    """`a,b` -> ["a", "b"]; None, an option that was not given, is one value."""
    if value is None:
        return [None]
    return [part.strip() for part in str(value).split(",") if part.strip()] or [""]


def _numbers(name: str, options: TrainOptions, least: int = 1) -> list[int | None]:
    value = getattr(options, name)
    try:
        numbers = [v if v is None else int(v) for v in _values(value)]
    except ValueError:
        raise InputError(f"{flag(name)} {value}: a whole number, or several with commas") from None
    if any(n is not None and n < least for n in numbers):
        raise InputError(f"{flag(name)} {value}: must be {least} or more")
    return numbers


def table_row(number: int) -> dict[str, Any]:
    """A row of tables.toml; `InputError` for a table that is not there."""
    rows = tomllib.loads(TABLES_FILE.read_text("utf-8"))
    if str(number) not in rows:
        raise InputError(f"--table {number}: there are {', '.join(rows)}")
    row: dict[str, Any] = rows[str(number)]
    return row


def with_table(options: _O) -> _O:
    """The options with those that `--table` sets; one that was given beside it keeps its value."""
    if options.table is None:
        return options
    row = table_row(options.table)
    return options.with_values({k: row[k] for k in TABLE_OPTIONS if k in row and k not in options.given})
