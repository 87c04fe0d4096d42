"""From options to jobs: each point of a grid resolved into a setting, each of its splits into a fold to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hist_cache.datasets import dataset_named
from hist_cache.errors import InputError
from hist_cache.runs import Fold
from hist_cache.splits import Split, make_splits
from train.experiments.grid import Point
from train.experiments.protocols import Protocol, get_protocol
from train.experiments.setting import Setting
from train.fit.loop import FitConfig
from train.models.hist import HistConfig
from train.models.variants import get_variant
from train.workspace import DataKey, Workspace, digest_of

if TYPE_CHECKING:
    from train.finetune.encoder import Finetuning


@dataclass(frozen=True)
class Job:
    """One fold to train and test: plain data, so that another process may do it."""

    setting: Setting
    fold: int
    folder: Path
    split: Split
    data: DataKey

    @property
    def title(self) -> str:
        return f"{self.setting.name} fold {self.fold}"

    @property
    def done(self) -> bool:
        """Whether it is finished; `InputError` where its slides were others (a file of splits has changed)."""
        fold = Fold(self.folder)
        if not fold.finished:
            return False
        if {k: set(v) for k, v in fold.config["split"].items()} != {
            k: set(v) for k, v in dataclasses.asdict(self.split).items()
        }:
            raise InputError(f"{fold.folder}: was run on other slides than this split has; give another --runs folder")
        return True

    @property
    def stopped(self) -> bool:
        return Fold(self.folder).stopped


def make_jobs(points: Sequence[Point], config: Any, workspace: Workspace, runs: Path) -> list[Job]:
    """All folds of all points, in order. `InputError` before anything is run."""
    jobs = []
    for point in points:
        protocol = get_protocol(point.protocol).with_options(
            panel_from=config.panel_from, edge_spots=config.edge_spots, tested=config.tested
        )
        splits = splits_of(point, protocol, config, workspace)
        folds = choose_folds(splits, config.fold)
        panels = {
            i: workspace.panel(point.genes, point.n_genes, chosen_on(protocol, split, workspace))
            for i, split in folds.items()
        }
        setting = make_setting(point, protocol, config, workspace, next(iter(panels.values())))
        for i, split in folds.items():
            key = DataKey(point.neighbors, tuple(panels[i]), point.transform, protocol.edge_spots == "drop")
            folder = runs / workspace.dataset / setting.name / f"fold{i}"
            jobs.append(Job(setting, i, folder, split, key))
    return jobs


def splits_of(point: Point, protocol: Protocol, config: Any, workspace: Workspace) -> list[Split]:
    """The splits, with the test dataset's slides in place of their own test slides where there is one."""
    kind = point.split or protocol.split or None
    ids = list(workspace.slides)
    splits = make_splits(workspace.dataset, ids, workspace.patients, kind, config.folds, config.seed)
    if workspace.test_dataset is None:
        return splits
    elsewhere = tuple(workspace.test_slides)
    return [dataclasses.replace(s, test=elsewhere, name=f"{s.name}-{workspace.test_dataset}") for s in splits]


def choose_folds(splits: list[Split], fold: int | None) -> dict[int, Split]:
    if fold is not None and not 0 <= fold < len(splits):
        raise InputError(f"--fold {fold}: there are splits 0 to {len(splits) - 1}")
    return {i: s for i, s in enumerate(splits) if fold is None or i == fold}


def chosen_on(protocol: Protocol, split: Split, workspace: Workspace) -> tuple[str, ...]:
    """The slides whose counts choose the gene panel."""
    return split.train if protocol.panel_from == "train" else tuple(workspace.slides)


def make_setting(point: Point, protocol: Protocol, config: Any, workspace: Workspace, panel: Sequence[str]) -> Setting:
    """Options over the dataset's defaults over the paper's."""
    preset = dataset_named(workspace.dataset).training

    def resolve(kind: Any, **fixed: Any) -> Any:
        values = dict(fixed)
        for field in dataclasses.fields(kind):
            asked = getattr(config, field.name, None)
            if field.name not in values and asked is not None and asked is not False:
                values[field.name] = asked
            elif field.name not in values and field.name in preset:
                values[field.name] = preset[field.name]
        return kind(**values)

    embedding_width = next(iter(workspace.slides.values())).embeddings.shape[1]
    return Setting(
        dataset=workspace.dataset,
        test_dataset=workspace.test_dataset,
        variant=protocol.apply(get_variant(point.ablation)),
        protocol=protocol,
        cache=workspace.common,
        slides=tuple(workspace.slides),
        neighbors=point.neighbors,
        genes=point.genes,
        n_genes=len(panel),
        panel=digest_of(panel) if protocol.panel_from == "all" else "",
        split=point.split or protocol.split or "default",
        transform=point.transform,
        model=resolve(HistConfig, embedding_width=embedding_width, n_genes=len(panel)),
        loop=resolve(FitConfig),
        tuning=make_tuning(point.lora_layers, config) if point.lora_layers else None,
    )


def make_tuning(layers: int, config: Any) -> Finetuning:
    from extract.encoders.lora import LoraConfig
    from train.finetune.encoder import Finetuning, default_precision

    return Finetuning(
        lora=LoraConfig(layers, config.lora_rank, config.lora_alpha, config.lora_dropout),
        start="crops" if config.no_token_cache or config.augment else "tokens",
        augment=config.augment,
        precision=config.precision or default_precision(),
    )
