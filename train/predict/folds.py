"""The folds of a run, ready to predict slides that they have not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from extract.adapted import adapted_cache
from extract.encoders.adapters import ADAPTER, SETTINGS, adapter_digest, read_adapter_slides
from hist_cache.cache import Cache
from hist_cache.console import warn
from hist_cache.errors import InputError, one_line
from hist_cache.fingerprint import encoder_slug, identity_hash, is_tuned
from hist_cache.runs import CONFIG, METRICS, PANEL, RECIPE, Fold, Run, fold_folders
from hist_cache.slide_file import read_fingerprint
from hist_cache.splits import SPLIT_PARTS, Split
from hist_cache.spot_scale import SpotScale, usual_scale
from train.experiments.fold_files import read_metrics, read_split
from train.experiments.outputs import load_model
from train.experiments.setting import Setting, read_setting
from train.models.base import Model
from train.models.ensemble import EnsembleModel
from train.models.registry import get_model
from train.recipes.restored import fitted_names, needs_whole_slides


@dataclass(frozen=True)
class TrainedFold:
    """A finished fold.

    Attributes:
        folder: Its folder.
        setting: What decided its numbers.
        panel: Names of its genes.
        split: The slides that it was trained, validated and tested on.
        images: Slide ID -> SHA-256 of its image, of those that are known.
        scale: Of the spots that it has learnt from; None where its folder does not say.
        adapter: The adapter of its encoder; None for the encoder as it is.
        digest: Of its weights.
    """

    folder: Path
    setting: Setting
    panel: list[str]
    split: Split
    images: dict[str, str]
    scale: SpotScale | None
    adapter: Path | None
    digest: str

    @property
    def cached_width(self) -> int:
        """D, the width of the embeddings in the cache."""
        return self.setting.model.embedding_width // (1 + self.setting.recipe.neighbor_rings)

    @property
    def n_rings(self) -> int:
        """Rings around each spot whose spots it reads."""
        return max(self.setting.recipe.n_rings, get_model(self.setting.model_name).n_rings)

    @property
    def drops_edges(self) -> bool:
        """Whether it was tested without spots that lack a neighbour."""
        return self.setting.protocol.edge_spots == "drop"

    def seen(self, name: str, image: str) -> str:
        """What the fold has seen of a slide: "train", "val", "test", "adapter", or "" where nothing.

        Args:
            name: Of the slide.
            image: SHA-256 of its image, by which it is recognised under another name.
        """
        ids = {slide for slide, digest in self.images.items() if digest == image} | {name}
        parts = {part: self.setting.slides_of(getattr(self.split, part)) for part in SPLIT_PARTS}
        if self.adapter is not None and (known := read_adapter_slides(self.adapter)) is not None:
            parts = {"train": parts["train"], "val": parts["val"], "adapter": [*known.train, *known.val]} | parts
        return next((part for part, slides in parts.items() if ids & set(slides)), "")

    def load(self, device: torch.device) -> tuple[Model, dict[str, Tensor]]:
        """The model, and what its recipe has fitted."""
        tensors = read_recipe_tensors(self.folder)
        if missing := fitted_names(self.setting.recipe) - tensors.keys():
            raise InputError(
                f"{self.folder / RECIPE}: {', '.join(sorted(missing))} not in it; delete {self.folder} to run it again"
            )
        return load_model(self.folder).to(device), tensors


def looks_around(model: Model) -> bool:
    """Whether a model, or a member of an ensemble, looks at the other spots of a slide."""
    members = [model.member(i) for i in range(len(model.members))] if isinstance(model, EnsembleModel) else [model]
    return any(type(member).look_around is not Model.look_around for member in members)


def needs_surroundings(model: Model, fold: TrainedFold) -> bool:
    """Whether predictions of a spot depend on the other spots of its slide."""
    return looks_around(model) or fold.n_rings > 0 or needs_whole_slides(fold.setting.recipe)


def read_recipe_tensors(folder: Path) -> dict[str, Tensor]:
    """What the recipe of a fold has fitted; {} where it has fitted nothing."""
    file = folder / RECIPE
    if not file.exists():
        return {}
    try:
        return dict(load(file.read_bytes()))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{file}: damaged ({one_line(error)}); delete {folder} to run it again") from error


def run_name(path: Path) -> str:
    """The name of a run, or of one of its folds with the run's before it: `full-1a2b3c4d/fold0`."""
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if (path / METRICS).is_file() else path.name


def read_folds(path: Path, lora: Path | None, cache_root: Path) -> list[TrainedFold]:
    """The finished folds of a run, or one of them.

    Args:
        path: Folder of a run or of a fold.
        lora: Where the adapters are, if they are not in the folds.
        cache_root: Folder of all caches, where runs that do not state the scale of their spots are looked up.

    Raises:
        InputError: There is none, or a file cannot be read.
    """
    folders = [path] if (path / METRICS).is_file() else [f.folder for f in Run(path).folds]
    unfinished = [folder.name for folder in fold_folders(path) if folder not in folders]
    if not folders:
        started = f"; {len(unfinished)} are not finished" if unfinished else ""
        raise InputError(f"--run {path}: no finished fold here{started} (looked for fold*/{METRICS})")
    if unfinished:
        warn(f"{path}: not finished, and without a part in the mean: {', '.join(unfinished)}")
    for folder in folders:
        if problems := read_metrics(folder).get("diverged"):
            warn(f"{folder}: its training diverged ({problems[0]}); leave it out with --run {path}/fold<i>")
        if leak := Fold(folder).config.get("leak"):
            warn(f"{folder}: LEAK: it {leak}")
    return [read_trained_fold(folder, lora, cache_root) for folder in folders]


def read_trained_fold(folder: Path, lora: Path | None, cache_root: Path) -> TrainedFold:
    """One finished fold; `InputError` where a file cannot be read."""
    config = Fold(folder).config
    setting = read_setting(folder / CONFIG, config)
    split = read_split(folder / CONFIG, config)
    panel = Fold(folder).panel
    if len(panel) != setting.model.n_genes:
        raise InputError(f"{folder / PANEL}: has {len(panel)} genes, the model {setting.model.n_genes}; copy it again")
    return TrainedFold(
        folder,
        setting,
        panel,
        split,
        known_images(config, setting, split, cache_root),
        spot_scale_of(folder, config, setting, split, cache_root),
        find_fold_adapter(folder, config, setting, lora),
        str(read_metrics(folder).get("model_digest", "")),
    )


def spot_scale_of(
    folder: Path, config: dict[str, Any], setting: Setting, split: Split, cache_root: Path
) -> SpotScale | None:
    """The scale of the train slides' spots: as config.json states it, else as the cache does; None where neither."""
    if "scale" in config:
        try:
            return SpotScale.from_dict(config["scale"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder / CONFIG}: 'scale' is not readable ({one_line(error)})") from error
    cache = plain_cache(setting, cache_root)
    slides = [s for s in setting.slides_of(split.train) if cache.path(s).is_file()]
    return usual_scale(cache.read(s, [setting.neighbors]) for s in slides)


def known_images(config: dict[str, Any], setting: Setting, split: Split, cache_root: Path) -> dict[str, str]:
    """SHA-256 of the images of a fold's slides: as config.json states them, else as the cache does."""
    if isinstance(config.get("images"), dict):
        return dict(config["images"])
    cache = plain_cache(setting, cache_root)
    paths = {slide: cache.path(slide) for slide in setting.slides_of(split.ids)}
    digests = {s: str(read_fingerprint(path).slide.get("image", "")) for s, path in paths.items() if path.is_file()}
    return {slide: digest for slide, digest in digests.items() if digest}


def plain_cache(setting: Setting, cache_root: Path) -> Cache:
    """The cache of a run's slides and its encoder without an adapter, which may not be there."""
    name = f"{encoder_slug(setting.cache['encoder'])}-{identity_hash(plain_identity(setting))}"
    return Cache(cache_root / setting.dataset / name)


def plain_identity(setting: Setting) -> dict[str, Any]:
    """What the embeddings were made from that a run reads, as if their encoder had no adapter."""
    return {key: value for key, value in setting.cache.items() if key != "adapter"} | {"lora": None}


def training_cache(fold: TrainedFold, cache_root: Path) -> Cache:
    """The cache of the embeddings that a fold was trained on, which may not be there."""
    plain = plain_cache(fold.setting, cache_root)
    return adapted_cache(plain, fold.adapter) if fold.adapter is not None and plain.slides else plain


def find_fold_adapter(folder: Path, config: dict[str, Any], setting: Setting, lora: Path | None) -> Path | None:
    """The adapter of a fold's encoder: its own, or that of `--lora`.

    Args:
        folder: Of the fold.
        config: The content of its config.json.
        setting: The same, read.
        lora: Folder of an adapter, or of a run with an adapter in the fold of the same number.

    Raises:
        InputError: The embeddings are those of an adapter that is not there, or another one was given.
    """
    own = folder / ADAPTER
    if (own / SETTINGS).is_file():
        return own
    if not is_tuned(setting.cache):
        return None
    wanted = config.get("embedded_by") or setting.cache["lora"]
    if lora is None:
        raise InputError(
            f"{folder}: its embeddings are those of an adapter (digest {str(wanted)[:12]}); give it, or its run, with "
            "--lora"
        )
    places: Sequence[Path] = (lora, lora / ADAPTER, lora / folder.name / ADAPTER)
    adapter = next((p for p in places if (p / SETTINGS).is_file()), None)
    if adapter is None:
        raise InputError(f"--lora {lora}: no adapter here for {folder.name}")
    if (digest := adapter_digest(adapter)) != wanted:
        raise InputError(
            f"--lora {adapter}: has the digest {digest[:12]}, and {folder} was trained on embeddings of {wanted[:12]}"
        )
    return adapter
