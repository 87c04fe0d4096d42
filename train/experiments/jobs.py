"""From options to jobs: each point of a grid resolved into a setting, each of its splits into a fold to run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from extract.encoders.adapter_slides import AdapterSlides
from extract.encoders.lora import LoraConfig
from hist_cache.checked import check_fields
from hist_cache.datasets import dataset_named
from hist_cache.errors import InputError
from hist_cache.fingerprint import is_tuned
from hist_cache.options import option_fields
from hist_cache.own_tables import own_rows
from hist_cache.runs import CHECKPOINT, CONFIG, Fold, member_checkpoint
from hist_cache.slide_parts import WITHIN
from hist_cache.splits import LOSO_ALIKE, SPLIT_PARTS, Split, are_drawn, kind_in_use, make_splits
from hist_cache.validation_slides import ValidateOn
from hist_cache.values import Precision
from train.experiments.fold_files import read_split
from train.experiments.grid import Point, first_seed, options_at, used_options
from train.experiments.protocols import Protocol, get_protocol, protocol_options
from train.experiments.run_folders import run_folder
from train.experiments.setting import Setting
from train.experiments.within import check_within
from train.finetune.encoder import Finetuning, default_layers
from train.fit.checkpoints import Checkpoint
from train.fit.config import FitConfig
from train.leaks import adapter_slides, find_leak
from train.models.registry import DEFAULT_MODEL, get_model
from train.models.variants import get_variant
from train.options import TrainOptions
from train.parts import BandCut
from train.recipes.config import RecipeConfig
from train.recipes.table import recipe_options
from train.workspace import DataKey, Workspace, panel_digest, slide_digests

_C = TypeVar("_C", RecipeConfig, FitConfig)


@dataclass(frozen=True)
class Job:
    """One fold to train and test: plain data, so that another process may do it.

    Attributes:
        leak: What the adapter of the embeddings has seen of the test slides; "" where it has seen none.
        embedded_by: Digest of the adapter of the embeddings, where each fold has its own.
        adapter: The slides of the adapter that is trained with the model.
    """

    setting: Setting
    fold: int
    folder: Path
    split: Split
    data: DataKey
    leak: str = ""
    embedded_by: str = ""
    adapter: AdapterSlides | None = None

    @property
    def title(self) -> str:
        """The run's name and the fold's number."""
        return f"{self.folder.parent.name} fold {self.fold}"

    @property
    def checkpoint(self) -> Checkpoint:
        """The fold's checkpoint, and all that decides what is trained, which it must have been made for."""
        made_for = self.setting.identity() | {
            "digests": self.setting.digests,
            "split": {part: sorted(getattr(self.split, part)) for part in SPLIT_PARTS},
            "panel": list(self.data.panel),
            "embedded_by": self.embedded_by,
        }
        return Checkpoint(self.folder / CHECKPOINT, json.loads(json.dumps(made_for)))

    def member_checkpoint(self, member: int) -> Checkpoint:
        """The checkpoint of one model of the fold, from 0 on; those of an ensemble are kept until the fold ends."""
        first = self.checkpoint
        if self.setting.recipe.ensemble == 1:
            return first
        path = self.folder / member_checkpoint(member)
        made_for = first.made_for | ({"member": member} if member else {})
        return dataclasses.replace(first, path=path, made_for=made_for, kept=True)

    @property
    def done(self) -> bool:
        """Whether it is finished; `InputError` where its slides were others (a file of splits has changed)."""
        fold = Fold(self.folder)
        if fold.finished:
            self._check_slides(fold)
        return fold.finished

    @property
    def stopped(self) -> bool:
        """Whether it was begun and there is a checkpoint to go on from.

        Raises:
            InputError: It was begun on other slides or genes, so that test slides might have been trained on.
        """
        fold = Fold(self.folder)
        if fold.stopped and not self.checkpoint.check():  # of version 0.1: what it was made for stands beside it
            self._check_slides(fold)
            if fold.panel != list(self.data.panel):
                raise InputError(f"{fold.folder}: was begun with another gene panel; give another --runs folder")
        return fold.stopped

    def _check_slides(self, fold: Fold) -> None:
        split = read_split(fold.folder / CONFIG, fold.config)
        if any(set(getattr(split, part)) != set(getattr(self.split, part)) for part in SPLIT_PARTS):
            raise InputError(f"{fold.folder}: was run on other slides than this split has; give another --runs folder")
        if self.embedded_by and fold.config.get("embedded_by") != self.embedded_by:
            raise InputError(f"{fold.folder}: was run on embeddings of another adapter; give another --runs folder")

    @property
    def adapter_record(self) -> dict[str, Any]:
        """What config.json says of the adapter of the embeddings; {} where there is none."""
        record = {"embedded_by": self.embedded_by} if self.embedded_by else {}
        return record | {"leak": self.leak} if is_tuned(self.setting.cache) else {}


def make_jobs(points: Sequence[Point], options: TrainOptions, workspace: Workspace, runs: Path) -> list[Job]:
    """All folds of all points, in order; `InputError` before anything is run.

    Where `--precision` is auto they are in fp32, which `train.experiments.precision` decides anew.

    Args:
        points: Of the grid.
        options: Of the command.
        workspace: The cache, with the neighbourhood sizes of all points.
        runs: Folder of the runs.
    """
    jobs = []
    layers: dict[int | None, int] = {}  # counted once, because it is logged
    split_seed = first_seed(options) if options.split_seed is None else options.split_seed
    for point in points:
        if point.lora_layers not in layers:
            name = workspace.common["encoder"]
            layers[point.lora_layers] = default_layers(name) if point.lora_layers is None else point.lora_layers
        protocol = get_protocol(point.protocol).with_options(
            panel_from=options.panel_from,
            edge_spots=options.edge_spots,
            tested=options.tested,
            niche_profile=options.niche_profile,
            validate_on=options.validate_on,
        )
        folds = choose_folds(splits_of(point, protocol, options, workspace, split_seed), options.fold)
        cuts: dict[int, BandCut] = {}
        if split_name(point, protocol, workspace) == WITHIN:
            check_within(options, workspace)
            cuts = {i: BandCut(point.neighbors, i) for i in folds}
        for i, split in folds.items():
            if i in cuts:
                workspace.parts(cuts[i])  # an error now where a slide cannot be cut
            else:
                workspace.check_split(split)
        panels = {}
        for i, split in folds.items():
            chosen_on, cut = panel_slides(protocol, split, workspace), cuts.get(i)
            of_parts = cut if protocol.panel_from == "train" else None
            panels[i] = workspace.panel(point.genes, point.n_genes, chosen_on, of_parts)
        point = dataclasses.replace(point, lora_layers=layers[point.lora_layers])
        if point.lora_layers and is_tuned(workspace.common):
            raise InputError(f"{workspace.cache.folder}: its encoder is fine-tuned already; give the plain one's cache")
        panel = next(iter(panels.values()))
        setting = make_setting(point, protocol, options_at(point, options), workspace, panel, split_seed)
        run = run_folder(runs / workspace.dataset, setting)
        for i, split in folds.items():
            drop_edges = protocol.edge_spots == "drop"
            key = DataKey(
                *(point.neighbors, tuple(panels[i]), point.transform, drop_edges, protocol.niche_profile),
                n_rings=max(setting.recipe.n_rings, get_model(point.model).n_rings),
                tested_band=i if cuts else None,
            )
            adapter = adapter_slides(workspace, split) if setting.finetuning else None
            jobs.append(Job(setting, i, run / f"fold{i}", split, key, find_leak(workspace, split), adapter=adapter))
    check_validate_on(options.validate_on, {job.setting.split for job in jobs})
    return list({job.folder: job for job in jobs}.values())  # a model that takes no recipe is the same under each


def splits_of(point: Point, protocol: Protocol, options: TrainOptions, workspace: Workspace, seed: int) -> list[Split]:
    """The splits, drawn with this seed if they are drawn; where there is a test dataset, all its slides are tested."""
    kind = point.split or protocol.split or None
    ids = list(workspace.slides)
    splits = make_splits(workspace.dataset, ids, workspace.patients, kind, options.folds, seed, protocol.validate_on)
    if workspace.test_dataset is None:
        return splits
    test = tuple(workspace.test_slides)
    return [dataclasses.replace(s, test=test, name=f"{s.name}-{workspace.test_dataset}") for s in splits]


def split_name(point: Point, protocol: Protocol, workspace: Workspace) -> str:
    """What `Setting.split` records: the kind of the splits as it was given, or `LOSO_ALIKE`."""
    kind = point.split or protocol.split or None
    in_use = kind_in_use(workspace.dataset, list(workspace.slides), workspace.patients, kind)
    if in_use == "loso" and protocol.validate_on == "alike":
        return LOSO_ALIKE
    is_own = workspace.dataset in own_rows("datasets")  # its default may change, and runs are told apart by the name
    return kind or (str(in_use) if is_own else "default")


def draws_splits(point: Point, protocol: Protocol, workspace: Workspace) -> bool:
    """Whether the splits are drawn, so that a seed changes them."""
    kind = point.split or protocol.split or None
    return are_drawn(workspace.dataset, list(workspace.slides), workspace.patients, kind)


def check_validate_on(asked: ValidateOn | None, split_names: Collection[str]) -> None:
    """`InputError` where `--validate-on alike` was given and no split leaves one slide out, so that nothing reads it.

    Args:
        asked: The option's value; None where the protocol decides.
        split_names: Of all runs, as `split_name` gives them.
    """
    if asked == "alike" and LOSO_ALIKE not in split_names:
        kinds = ", ".join(sorted(split_names))
        raise InputError(f"--validate-on alike: is for --split loso, not {kinds}; give that, or leave it out")


def choose_folds(splits: list[Split], fold: int | None) -> dict[int, Split]:
    """All splits by number, or one of them; `InputError` where there is none of that number."""
    if fold is not None and not 0 <= fold < len(splits):
        raise InputError(f"--fold {fold}: there are splits 0 to {len(splits) - 1}")
    return {i: s for i, s in enumerate(splits) if fold is None or i == fold}


def panel_slides(protocol: Protocol, split: Split, workspace: Workspace) -> tuple[str, ...]:
    """The slides whose counts choose the gene panel."""
    return split.train if protocol.panel_from == "train" else tuple(workspace.slides)


def make_setting(
    point: Point,
    protocol: Protocol,
    options: TrainOptions,
    workspace: Workspace,
    panel: Sequence[str],
    split_seed: int | None = None,
) -> Setting:
    """Resolve a point: what was given, over the recipe, the protocol, the model's own, the dataset and the defaults.

    Args:
        point: Of the grid.
        protocol: With the options that were given in place of its own.
        options: Of the command, with one number each.
        workspace: The cache.
        panel: Names of the genes.
        split_seed: What the splits are drawn with, if they are drawn; None: the seed of training.
    """
    of_protocol, of_recipe = protocol_options(protocol.name), recipe_options(point.recipe, options.recipe_path)
    if options.config_values.get("targets") == "raw":
        of_recipe.pop("level", None)  # it belongs to the row's targets, in whose place others were given
    entry = get_model(point.model)
    preset = dataset_named(workspace.dataset).training | entry.training | of_protocol | of_recipe
    used = used_options(entry)
    recipe = options.resolve(RecipeConfig, of_recipe, name=point.recipe) if entry.takes_recipe else RecipeConfig()
    recipe = without_unused(recipe, used)
    model_preset = preset if entry.name == DEFAULT_MODEL else of_recipe  # a dataset's width suits HiST alone
    finetunes = bool(point.lora_layers) and entry.learns
    precision: Precision = "bf16" if options.precision == "bf16" and entry.learns else "fp32"
    fit = without_unused(options.resolve(FitConfig, preset, precision=precision), used)
    if finetunes and recipe.changes_inputs:
        raise InputError(
            "--finetune-lora: the encoder's embeddings change in every step, so that they cannot be standardised or "
            "averaged over rings beforehand; give --standardize none --neighbor-rings 0"
        )
    if finetunes and entry.n_rings:
        raise InputError(f"--finetune-lora: --model {entry.name} reads the embeddings of neighbours from the cache")
    if finetunes and recipe.ensemble > 1:
        raise InputError("--finetune-lora: the encoder is fine-tuned with one model; give --ensemble 1")
    embedding_width = recipe.embedding_width(next(iter(workspace.slides.values())).embeddings.shape[1])
    model = options.resolve(entry.config, model_preset, embedding_width=embedding_width, n_genes=len(panel))
    try:
        for config in (recipe, fit, model):
            check_fields(config)
    except TypeError as error:
        raise InputError(f"--recipe {point.recipe}: {error}") from None
    return Setting(
        dataset=workspace.dataset,
        test_dataset=workspace.test_dataset,
        variant=protocol.apply(get_variant(point.ablation)) if entry.has_variants else None,
        protocol=protocol,
        cache=workspace.common,
        slides=tuple(workspace.slides),
        neighbors=point.neighbors,
        genes=point.genes,
        n_genes=len(panel),
        panel=panel_digest(panel) if protocol.panel_from == "all" else "",
        split=split_name(point, protocol, workspace),
        transform=point.transform,
        model=model,
        fit=fit,
        finetuning=make_finetuning(point.lora_layers or 0, options, of_protocol, precision) if finetunes else None,
        model_name=point.model,
        recipe=recipe,
        digests={name: slide_digests(slide, point.neighbors) for name, slide in workspace.all_slides.items()},
        split_seed=split_seed if split_seed != fit.seed and draws_splits(point, protocol, workspace) else None,
    )


def without_unused(config: _C, used: Collection[str]) -> _C:
    """A configuration with its default for every option that is not among those which a model uses."""
    unused: dict[str, Any] = {f.name: f.default for f in option_fields(type(config)) if f.name not in used}
    return dataclasses.replace(config, **unused)


def make_finetuning(
    layers: int, options: TrainOptions, of_protocol: Mapping[str, Any], precision: Precision
) -> Finetuning:
    """How the encoder is fine-tuned, from the options that were given, over the protocol's."""
    rank, alpha, dropout = (
        of_protocol[name] if name in of_protocol and name not in options.given else getattr(options, name)
        for name in ("lora_rank", "lora_alpha", "lora_dropout")
    )
    return Finetuning(
        lora=LoraConfig(layers, rank, alpha, dropout),
        start="crops" if options.no_token_cache or options.augment else "tokens",
        augment=options.augment,
        precision=precision,
    )
