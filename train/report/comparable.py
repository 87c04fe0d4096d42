"""Which published rows a run may be compared with, or why with none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from extract.encoders.lora import LoraConfig
from hist_cache.fingerprint import CropRule
from hist_cache.splits import Split, published_splits
from train.experiments.protocols import get_protocol
from train.fit.config import FitConfig
from train.models.configs import HistConfig
from train.models.registry import DEFAULT_MODEL
from train.recipes.config import RecipeConfig
from train.report.published import FROZEN, has_published, published_methods, published_numbers
from train.report.results import RunResult

PUBLISHED_ENCODER = "uni"  # of all published runs of HiST
DATA_CHOICES = ("panel_from", "edge_spots")  # choices of a protocol that decide what is predicted, for any method
NOT_COMPARED = ("name", "split", "min_spot_um")  # of a protocol: the split and the cache say what was done
FREE = ("seed", "precision")  # of the training loop: chance, and rounding that changes less than chance does
MAX_NAMED = 5  # departures in one sentence


def layers_of(run: RunResult) -> int:
    """Blocks of the encoder that were fine-tuned with the model."""
    return run.setting.finetuning.lora.layers if run.setting.finetuning else FROZEN


def data_departures(run: RunResult) -> list[str]:
    """In what a run's slides and truth are not those of the published numbers, which binds every method."""
    setting = run.setting
    found = ["test slides were seen"] if run.leaks else []
    found += [f"transform {setting.transform} instead of log2"] if setting.transform != "log2" else []
    protocol, paper = vars(setting.protocol), vars(get_protocol("paper"))
    found += _differences({k: protocol[k] for k in DATA_CHOICES}, {k: paper[k] for k in DATA_CHOICES})
    kind = "slide" if setting.split == "default" else setting.split
    published = published_splits(setting.dataset, kind) or []
    count = sum(any(_same(fold.split, split, setting.test_dataset) for fold in run.folds) for split in published)
    if not published:
        return [*found, f"splits are not published ({kind})"]
    return found + ([f"{count} of the {len(published)} published splits"] if count < len(published) else [])


def _same(one: Split, published: Split, test_dataset: str | None) -> bool:
    parts = ("train", "val") if test_dataset else ("train", "val", "test")
    return all(set(getattr(one, part)) == set(getattr(published, part)) for part in parts)


def setting_departures(run: RunResult) -> list[str]:
    """In what a run of HiST, its encoder or its training is not what was published."""
    setting, model = run.setting, run.setting.model
    cache = {"encoder": setting.cache.get("encoder"), "pretrained": setting.cache.get("pretrained", True)}
    cache |= CropRule.from_identity(setting.cache).as_dict() if "crop_rule" in setting.cache else {}
    found = ["its encoder was fine-tuned before"] if run.is_tuned else []
    found += _differences(cache, {"encoder": PUBLISHED_ENCODER, "pretrained": True, "min_spot_um": 0.0})
    found += _differences(vars(model), vars(HistConfig(model.embedding_width, model.n_genes)))
    training = {k: v for k, v in vars(setting.fit).items() if k not in FREE}
    found += _differences(training, vars(FitConfig()))
    switches = {k: v for k, v in vars(setting.recipe).items() if k != "name"}
    found += _differences(switches, vars(RecipeConfig()))
    protocol, paper = vars(setting.protocol), vars(get_protocol("paper"))
    kept = [k for k in paper if k not in (*NOT_COMPARED, *DATA_CHOICES)]
    found += _differences({k: protocol[k] for k in kept}, {k: paper[k] for k in kept})
    if tuning := setting.finetuning:
        usual = vars(LoraConfig(tuning.lora.layers)) | {"augment": False}
        found += _differences(vars(tuning.lora) | {"augment": tuning.augment}, usual, "LoRA ")
    return found


def _differences(own: Mapping[str, Any], published: Mapping[str, Any], prefix: str = "") -> list[str]:
    return [
        f"{prefix}{key.replace('_', ' ')} {value} instead of {published[key]}"
        for key, value in own.items()
        if key in published and value != published[key]
    ]


def may_compare(run: RunResult) -> bool:
    """Whether a run of HiST was made as the published ones were, so that it compares with the row of its setting."""
    return run.model == DEFAULT_MODEL and not (data_departures(run) or setting_departures(run))


def published_notes(runs: Sequence[RunResult]) -> list[str]:
    """A sentence for all runs of a table that compare alike: with which published rows, or why with none."""
    labels: dict[str, list[str]] = {}
    for run in runs:
        labels.setdefault(_verdict(run), []).append(run.label)
    if len(labels) == 1 and len(runs) > 1:
        return [f"all runs: {next(iter(labels))}"]
    return [f"{'; '.join(names)}: {verdict}" for verdict, names in labels.items()]


def _verdict(run: RunResult) -> str:
    s = run.setting
    if not has_published(s.dataset):
        return f"no published row to compare with, nothing was published of {s.dataset}"
    departures = data_departures(run)
    others = published_methods(s.dataset, s.genes, s.n_genes, s.split, s.test_dataset)
    rows = ["the other methods"] if others and not departures else []
    if run.model == DEFAULT_MODEL:
        layers, variant = layers_of(run), str(run.variant)
        numbers = published_numbers(
            s.dataset, variant, s.genes, s.n_genes, s.split, s.neighbors, s.test_dataset, None, layers
        )
        departures += setting_departures(run)
        rows = [f"LoRA {layers}", *rows] if numbers and not departures else rows
        departures += [] if numbers else ["none was published of its setting"]
    return f"compare with {' and '.join(rows) or 'none'} of the published rows{_why(departures)}"


def _why(departures: Sequence[str]) -> str:
    more = f"; and {len(departures) - MAX_NAMED} more" if len(departures) > MAX_NAMED else ""
    return f": {'; '.join(departures[:MAX_NAMED])}{more}" if departures else ""
