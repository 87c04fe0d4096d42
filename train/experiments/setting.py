"""What decides a run's numbers, resolved. Its hash names the run; config.json holds it, and it is read back there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from hist_cache.checked import check_entries, check_fields
from hist_cache.errors import InputError
from hist_cache.fingerprint import as_version_0_1, from_version_0_1, short_hash
from hist_cache.runs import RUN_ANEW
from hist_cache.slide_parts import WITHIN, whole_slide
from hist_cache.texts import shortened
from train.experiments.protocols import Protocol
from train.expression import Transform
from train.finetune.encoder import Finetuning
from train.fit.config import FitConfig
from train.models.configs import ModelConfig
from train.models.registry import DEFAULT_MODEL, get_model
from train.models.variants import Variant
from train.recipes.config import RecipeConfig

# Names in config.json and in the hash that differ from those here.
FILE_NAMES = {"fit": "loop", "finetuning": "tuning"}
# Entries of config.json that are read as they are, and their types.
PLAIN_ENTRIES: dict[str, type] = {
    "dataset": str,
    "neighbors": int,
    "genes": str,
    "n_genes": int,
    "panel": str,
    "transform": str,
}


@dataclass(frozen=True)
class Setting:
    """One experiment, over all its folds.

    Attributes:
        dataset: Trained on.
        test_dataset: Tested on all slides of this dataset instead of the split's own test slides.
        variant: Of HiST, with the protocol's weights and cones; None for a model without variants.
        protocol: Resolved.
        cache: The common part of the cache's fingerprint.
        slides: Trained, validated or tested on, over all folds.
        neighbors: Neighbourhood size of the niches.
        genes: The kind of the gene panel, or its file.
        n_genes: Its size.
        panel: Digest of its names; "" where each fold chooses its own.
        split: The kind of the splits.
        transform: Of the counts.
        model: The model's options.
        fit: The training loop's options.
        finetuning: How the encoder is fine-tuned with the model; None on cached embeddings.
        model_name: As `--model` takes it.
        recipe: What the model reads and learns, and what becomes of its predictions.
        digests: Slide -> digests of its counts and of its embeddings, for all slides that are read; {} in runs of
            version 0.1. No part of the hash: `train.experiments.run_folders` tells runs on other contents apart.
        split_seed: What the splits were drawn with; None where the seed of training drew them, or nothing was drawn.
    """

    dataset: str
    test_dataset: str | None
    variant: Variant | None
    protocol: Protocol
    cache: dict[str, Any]
    slides: tuple[str, ...]
    neighbors: int
    genes: str
    n_genes: int
    panel: str
    split: str
    transform: Transform
    model: ModelConfig
    fit: FitConfig
    finetuning: Finetuning | None = None
    model_name: str = DEFAULT_MODEL
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    digests: dict[str, dict[str, str]] = field(default_factory=dict)
    split_seed: int | None = None

    @property
    def method(self) -> str:
        """What is compared: the variant of HiST, or the model; a mean with ridge is another model."""
        name = self.variant.name if self.variant else self.model_name
        return f"{name}+ridge" if self.recipe.ridge == "mean" else name

    @property
    def is_within(self) -> bool:
        """Whether parts of the same slides are trained on and tested."""
        return self.split == WITHIN

    def slides_of(self, names: Iterable[str]) -> list[str]:
        """IDs of the slides that names in a split stand for: themselves, or the slides of which they are parts."""
        return list(dict.fromkeys(map(whole_slide, names))) if self.is_within else list(names)

    @property
    def name(self) -> str:
        """`full-1a2b3c4d`, `full-lora11-1a2b3c4d`: the method, fine-tuned blocks, and 8 hex digits of everything."""
        tuned = f"-lora{self.finetuning.lora.layers}" if self.finetuning else ""
        return f"{self.method}{tuned}-{short_hash(self.identity())}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as config.json holds them."""
        values = asdict(self) | {"variant": self.variant.as_dict() if self.variant else None}
        values = {FILE_NAMES.get(name, name): value for name, value in values.items()}
        absent = [] if self.finetuning else ["tuning"]
        absent += ["model_name"] if self.model_name == DEFAULT_MODEL else []
        absent += [] if self.digests else ["digests"]
        absent += ["split_seed"] if self.split_seed is None else []
        absent += ["recipe"] if self.recipe == RecipeConfig() else []
        return {name: value for name, value in values.items() if name not in absent}

    def identity(self) -> dict[str, Any]:
        """What is hashed: `as_dict` in the form of version 0.1, without later options at their defaults.

        A model that does not learn by gradient steps depends on no option of training but `seed` and `select_by`.
        """
        values = self.as_dict() | {"cache": as_version_0_1(self.cache)}
        values.pop("digests", None)
        values["model"] = without_new_defaults(self.model)
        values["loop"] = without_new_defaults(self.fit)
        values["protocol"] = without_new_defaults(self.protocol)
        if "recipe" in values:
            values["recipe"] = without_new_defaults(self.recipe)
        if not get_model(self.model_name).learns:
            chosen = {"select_by": self.fit.select_by} if self.fit.select_by != "mse" else {}
            values["loop"] = {"seed": self.fit.seed} | chosen
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read back the content of a config.json, of this version or of 0.1; other entries in it are ignored.

        Raises:
            KeyError: An entry is missing.
            TypeError: An entry has another form.
            InputError: A value is out of its range, or the model is unknown.
        """
        name = values.get("model_name", DEFAULT_MODEL)
        entry = get_model(name)
        for key, kind in PLAIN_ENTRIES.items():
            if not isinstance(values[key], kind):
                raise TypeError(f"{key!r} is {values[key]!r}")
        plain: dict[str, Any] = {key: values[key] for key in PLAIN_ENTRIES}
        if isinstance(values["slides"], str):
            raise TypeError(f"'slides' is {shortened(repr(values['slides']))}")
        loop = dict(values["loop"])  # `select_by` was called `stop_on` for some time before 0.2
        setting = cls(
            **plain,
            model_name=name,
            test_dataset=values["test_dataset"],
            variant=Variant.from_dict(values["variant"]) if values["variant"] else None,
            protocol=Protocol.from_dict(values["protocol"]),
            cache=from_version_0_1(values["cache"]),
            slides=tuple(values["slides"]),
            split=values["split_kind"],
            model=entry.config(**values["model"]),
            fit=FitConfig(**({"select_by": loop.pop("stop_on")} if "stop_on" in loop else {}) | loop),
            recipe=RecipeConfig(**values.get("recipe", {})),
            finetuning=Finetuning.from_dict(values["tuning"]) if values.get("tuning") else None,
            digests=values.get("digests", {}),
            split_seed=values.get("split_seed"),
        )
        check_fields(setting)
        check_entries(setting.cache, {"encoder": str}, {"pretrained": bool, "lora": str | None})
        setting.identity()  # it reads more of the cache's identity
        return setting


def without_new_defaults(config: Any) -> dict[str, Any]:
    """A config's values. Options added after version 0.1 are left out while they have their default."""
    new = {
        f.name for f in dataclasses.fields(config) if f.metadata.get("since") and getattr(config, f.name) == f.default
    }
    return {name: value for name, value in asdict(config).items() if name not in new}


def read_setting(file: Path, values: Mapping[str, Any]) -> Setting:
    """The setting in the content of a config.json; `InputError` with its path where that is not one."""
    try:
        return Setting.from_dict(values)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f"{file}: not the configuration of a run ({type(error).__name__}: {error}); {RUN_ANEW}"
        ) from None
