"""Models by name, for `--model NAME`. To add one: a file beside this one, its options in configs.py, an entry here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from hist_cache.errors import InputError
from train.models.configs import HistConfig, KnnConfig, ModelConfig, RidgeConfig, TunedRidgeConfig

if TYPE_CHECKING:  # a model's file imports torch, which `--help` does without
    from train.models.base import Model

DEFAULT_MODEL = "hist"


@dataclass(frozen=True)
class ModelEntry:
    """One model.

    Attributes:
        name: As `--model` takes it.
        title: What it is, in a few words.
        model: The class, or `module:Class`, which is imported when it is needed.
        config: The dataclass of its options.
        learns: Whether it is trained by gradient steps; otherwise `Model.prepare` computes it at once.
        has_variants: Whether the ablations of variants.toml apply to it.
        takes_recipe: Whether a recipe changes what it reads and learns; a fixed point of comparison stays as it is.
        unused: Options of training and of recipes that change nothing of it, besides those which follow from the above.
    """

    name: str
    title: str
    model: str | type[Model]
    config: type[ModelConfig]
    learns: bool = True
    has_variants: bool = False
    takes_recipe: bool = True
    unused: tuple[str, ...] = ()

    def load(self) -> type[Model]:
        """The model's class."""
        if isinstance(self.model, str):
            module, name = self.model.split(":")
            model: type[Model] = getattr(import_module(module), name)
        else:
            model = self.model
        if model.learns != self.learns:
            raise ValueError(f"model {self.name}: learns is {self.learns} in its entry and {model.learns} in its class")
        return model


_ENTRIES: dict[str, ModelEntry] = {}


def register(entry: ModelEntry) -> None:
    """Make a model known by its name; a later entry of the same name replaces it."""
    _ENTRIES[entry.name] = entry


register(ModelEntry("hist", "HiST / HyperST", "train.models.hist:HistModel", HistConfig, has_variants=True))
register(
    ModelEntry(
        "ridge",
        "ridge on 256 components",
        "train.models.baselines:RidgeModel",
        RidgeConfig,
        learns=False,
        takes_recipe=False,
        unused=("select_by",),
    )
)
register(
    ModelEntry(
        "ridge_tuned",
        "ridge on a recipe's inputs",
        "train.models.baselines:TunedRidgeModel",
        TunedRidgeConfig,
        learns=False,
        unused=("ridge",),  # which leaves nothing for another ridge
    )
)
register(
    ModelEntry(
        "knn",
        "nearest train spots",
        "train.models.baselines:KnnModel",
        KnnConfig,
        learns=False,
        unused=("select_by",),
    )
)


def model_entries() -> Iterable[ModelEntry]:
    """All models, in the order in which they were registered."""
    return _ENTRIES.values()


def get_model(name: str) -> ModelEntry:
    """The model called `name`; `InputError` with the names there are and the nearest one."""
    if name in _ENTRIES:
        return _ENTRIES[name]
    near = difflib.get_close_matches(name, _ENTRIES, n=1)
    question = f" (did you mean {near[0]}?)" if near else ""
    raise InputError(f"--model {name}: no such model{question}; there are {', '.join(_ENTRIES)}")


def named_models(text: str) -> list[ModelEntry]:
    """Models by a list of names, `hist,ridge`, or `all`; `InputError` for an unknown name."""
    if text == "all":
        return list(model_entries())
    return [get_model(name.strip()) for name in text.split(",")]
