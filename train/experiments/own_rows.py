"""The user's own tables at the start of hist-train and hist-sweep: found, and all values of options in them checked."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any

from hist_cache.checked import check_fields, is_of
from hist_cache.errors import InputError
from hist_cache.options import folder_option, option_fields
from hist_cache.own_file import use_own_tables
from hist_cache.own_tables import own_rows, own_tables
from hist_cache.texts import nearest_names, shortened
from hist_cache.values import Interval
from train.experiments.protocols import get_protocol
from train.fit.config import FitConfig
from train.models.configs import HistConfig
from train.models.registry import model_entries
from train.models.variants import all_variants
from train.options import TrainOptions
from train.recipes.config import RecipeConfig

LORA = ("lora_rank", "lora_alpha", "lora_dropout")  # options of the command that a protocol may set


def use_own_rows(options: TrainOptions) -> None:
    """Read the user's own tables, as `hist_cache.own_file.use_own_tables` finds them, and check them.

    Raises:
        InputError: Something in them is wrong; the message names the file and the key.
    """
    use_own_tables(options.own, folder_option(options.data_root, "HIST_DATA", "data"))
    all_variants()
    of_models = [entry.config for entry in model_entries()]
    for table, key, kinds, more in (
        ("datasets", "training", [FitConfig, HistConfig], ()),
        ("protocols", "options", [FitConfig, HistConfig], LORA),
        ("recipes", "options", [RecipeConfig, FitConfig, *of_models], ()),
    ):
        for name, row in own_rows(table).items():
            place = own_tables().place(table, name)
            check_values(f"{place[:-1]}.{key}]", row.get(key, {}), kinds, more)
    for name in own_rows("protocols"):
        try:
            check_fields(get_protocol(name))
        except TypeError as error:
            raise InputError(f"{own_tables().place('protocols', name)}: {error}") from None


def check_values(place: str, values: Mapping[str, Any], kinds: Sequence[type], more: Sequence[str]) -> None:
    """Check options that a table sets.

    Args:
        place: Where they stand, for messages.
        values: Options by name.
        kinds: Dataclasses of options that may be set.
        more: Names of further options of hist-train.

    Raises:
        InputError: One is no such option, or has a value that it cannot have.
    """
    forms: dict[str, list[tuple[Any, Interval | None]]] = {}
    for kind in (*kinds, TrainOptions):
        hints = typing.get_type_hints(kind)
        for field in option_fields(kind):
            if kind is not TrainOptions or field.name in more:
                forms.setdefault(field.name, []).append((hints[field.name], field.metadata.get("within")))
    for name, value in values.items():
        if name not in forms:
            near = nearest_names(name, forms)
            raise InputError(f"{place}: no option {shortened(name)}" + (f", did you mean {near[0]}?" if near else ""))
        if not any(is_of(value, hint) and (within is None or within.holds(value)) for hint, within in forms[name]):
            hint, within = forms[name][0]
            choices = " or ".join(map(repr, typing.get_args(hint))) if typing.get_origin(hint) is typing.Literal else ""
            wanted = str(within) if within else choices or getattr(hint, "__name__", str(hint))
            raise InputError(f"{place}: {name} is {shortened(repr(value))}; give {wanted}")
