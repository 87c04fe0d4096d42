"""Models by name, for `--model NAME`. To add one: a file beside this one, its options in configs.py, an entry here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hist_cache.errors import InputError
from hist_cache.texts import did_you_mean
from train.models import configs
from train.models.configs import ModelConfig

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
        keeps_spots: Whether it predicts with the expression of train spots, which its weights then hold.
        n_rings: Rings around a spot whose spots it reads, from the cache: its encoder cannot be fine-tuned with it.
        training: Options of the training loop that it has in its authors' hands, by name; they hold unless given.
        reference: Where it was published.
        encoder: Its encoder there, and how much of it is trained.
    """

    name: str
    title: str
    model: str | type[Model]
    config: type[ModelConfig]
    learns: bool = True
    has_variants: bool = False
    takes_recipe: bool = True
    unused: tuple[str, ...] = ()
    keeps_spots: bool = False
    n_rings: int = 0
    training: dict[str, Any] = field(default_factory=dict)
    reference: str = ""
    encoder: str = ""

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


def _entry(name: str, title: str, model: str, config: type[ModelConfig], **more: Any) -> None:
    register(ModelEntry(name, title, f"train.models.{model}", config, **more))


_entry(
    *("hist", "HiST / HyperST", "hist:HistModel", configs.HistConfig),
    has_variants=True,
    reference="HiST (ICLR 2026 submission), HyperST (CVPR 2026)",
    encoder="UNI, 11 blocks by LoRA",
)
_entry(
    *("ridge", "ridge on 256 components", "baselines:RidgeModel", configs.RidgeConfig),
    learns=False,
    takes_recipe=False,
    unused=("select_by",),
    reference="after the probe of HEST-bench (NeurIPS 2024)",
    encoder="any, frozen",
)
_entry(
    *("ridge_tuned", "ridge on a recipe's inputs", "baselines:TunedRidgeModel", configs.TunedRidgeConfig),
    learns=False,
    unused=("ridge",),  # which leaves nothing for another ridge
    reference="this program's strongest baseline",
    encoder="any, frozen",
)
_entry(
    *("knn", "nearest train spots", "baselines:KnnModel", configs.KnnConfig),
    keeps_spots=True,
    learns=False,
    unused=("select_by",),
    reference="this program's baseline",
    encoder="any, frozen",
)
_entry(
    *("stnet", "ST-Net, linear", "stnet:StNetModel", configs.StNetConfig),
    reference="He et al., Nature Biomedical Engineering 2020",
    encoder="DenseNet-121, all of it trained",
)
_entry(
    *("stnet_mlp", "ST-Net with a hidden layer", "stnet:StNetModel", configs.StNetMlpConfig),
    reference="after He et al., Nature Biomedical Engineering 2020",
    encoder="DenseNet-121, all of it trained",
)
_entry(
    *("bleep", "BLEEP", "bleep:BleepModel", configs.BleepConfig),
    keeps_spots=True,
    unused=("pearson",),
    training={"lr": 1e-3, "weight_decay": 1e-3, "batch_size": 256},
    reference="Xie et al., NeurIPS 2023",
    encoder="ResNet-50, all of it trained",
)
_entry(
    *("istar", "iSTAR, at the level of spots", "istar:IstarModel", configs.IstarConfig),
    training={"weight_decay": 0.0, "epochs": 400},
    reference="Zhang et al., Nature Biotechnology 2024",
    encoder="HIPT, frozen",
)
_entry(
    *("stevs", "STevs-style, our reconstruction of the abstract", "stevs:StevsModel", configs.StevsConfig),
    reference="after the abstract of STevs, which is all that is public",
    encoder="Swin Transformer, trained",
)
_entry(
    *("stem", "Stem, diffusion", "stem:StemModel", configs.StemConfig),
    # Epochs are the published ones. The average of weights looks 10,000 steps back: patience must not end before.
    training={"weight_decay": 0.0, "batch_size": 256, "ema": 0.9999, "patience_steps": 10_000, "epochs": 4000},
    unused=("pearson",),
    reference="Zhu et al., ICLR 2025",
    encoder="UNI and CONCH, frozen",
)
_entry(
    *("triplex", "TRIPLEX", "triplex:TriplexModel", configs.TriplexConfig),
    n_rings=2,
    training={"weight_decay": 0.0, "patience": 20},
    reference="Chung et al., CVPR 2024",
    encoder="ResNet-18, trained for the spot and frozen for its surroundings",
)


def model_entries() -> Iterable[ModelEntry]:
    """All models, in the order in which they were registered."""
    return _ENTRIES.values()


def get_model(name: str) -> ModelEntry:
    """The model called `name`; `InputError` with the names there are and the nearest one."""
    if name in _ENTRIES:
        return _ENTRIES[name]
    raise InputError(f"--model {name}: no such model{did_you_mean(name, _ENTRIES)}; there are {', '.join(_ENTRIES)}")


def named_models(text: str) -> list[ModelEntry]:
    """Models by a list of names, `hist,ridge`, or `all`; `InputError` for an unknown name."""
    if text == "all":
        return list(model_entries())
    return [get_model(name.strip()) for name in text.split(",")]
