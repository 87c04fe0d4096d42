"""hist-train: HiST and its variants on cached embeddings."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hist_cache.console import out, progress, say, warn
from hist_cache.errors import InputError
from hist_cache.options import folder_option, option, parse, run

if TYPE_CHECKING:
    from hist_cache.cache import Cache, CachedSlide
    from hist_cache.runs import Fold
    from hist_cache.splits import Split
    from train.runs import Setting

DESCRIPTION = """Phase two: train HiST on a dataset's cache, test it on held-out slides, print its metrics beside what
any model must beat. Finished folds are not run again; a stopped one goes on where it was."""
PROTOCOL = "paper"
METRIC_NAMES = {"pcc@10": "PCC@10", "pcc@50": "PCC@50", "pcc@200": "PCC@200", "mse": "MSE", "mae": "MAE"}


@dataclass(frozen=True)
class Config:
    dataset: str | None = option(
        None, "a dataset that hist-extract has cached (default: the one extracted last)", "NAME"
    )
    cache: str | None = option(None, "folder of the cache (default: $HIST_CACHE or ./cache)", "D")
    runs: str | None = option(None, "folder of the runs (default: $HIST_RUNS or ./runs)", "D")
    encoder: str | None = option(None, "whose cache, where the dataset has several", "NAME")
    ablation: str = option("full", "a variant: full, no_gi_hea, no_hea, no_hha, meru, clip, ...", "NAME")
    neighbors: Literal[6, 18, 36] = option(6, "neighbourhood size: 6, 18 or 36 (rings 1, 2, 3)", "K")
    genes: str = option("hmhvg", "gene panel: hmhvg, hvg, or a file of names", "PANEL")
    n_genes: int | None = option(None, "size of the panel (default: 200 for hmhvg, 300 for hvg, all of a file)", "N")
    split: str | None = option(
        None, "slide, patient, loso, or a file or folder of splits (default: the dataset's)", "KIND"
    )
    folds: int | None = option(None, "run the first so many splits (default: all there are, or 5)", "N")
    fold: int | None = option(None, "run this split only, counted from 0", "I")
    epochs: int | None = option(None, "most epochs (default: the dataset's, or 200)", "N")
    patience: int | None = option(
        None, "stop after so many epochs without a better validation error (default: 10)", "N"
    )
    batch_size: int | None = option(None, "spots a step (default: 128)", "N")
    lr: float | None = option(None, "learning rate of AdamW (default: 1e-4)", "X")
    weight_decay: float | None = option(None, "default: 0.01", "X")
    seed: int = option(42, "seeds weights, order of spots, drawn splits and controls", "N")
    width: int | None = option(None, "latent width d (default: the dataset's, or 1024)", "N")
    depth: int | None = option(None, "residual blocks a stream (default: 2)", "N")
    dropout: float | None = option(None, "default: 0.1", "X")
    alpha: float | None = option(None, "weight of the alignment losses (default: 0.2)", "X")
    beta: float | None = option(None, "weight of entailment within them (default: 0.4)", "X")
    curvature: float | None = option(None, "initial curvature magnitude c (default: 1)", "X")
    fixed_curvature: bool = option(False, "do not learn the curvature")
    temperature: float | None = option(None, "initial temperature of the contrast (default: 0.07)", "X")
    decoder_space: Literal["tangent", "hyperbolic"] | None = option(None, "what the decoder reads (default: tangent)")
    resume: bool = option(False, "only go on with a stopped run: an error where there is none")
    debug: bool = option(False, "show a traceback for every error")


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(Config, "hist-train", DESCRIPTION, argv)
    return run(train, config, config.debug)


def train(config: Config) -> int:
    """Run the command; returns the exit code."""
    import torch

    from hist_cache.cache import last_dataset, open_cache
    from hist_cache.panels import choose_panel
    from hist_cache.runs import Fold
    from hist_cache.splits import make_splits
    from train.data import assemble, read_slides
    from train.runs import run_fold, write_summary
    from train.variants import get_variant

    variant = get_variant(config.ablation)
    root = folder_option(config.cache, "HIST_CACHE", "cache")
    name = config.dataset or last_dataset(root)
    if config.dataset is None:
        say(f"dataset {name} (the one extracted last)")
    cache = open_cache(root, name, config.encoder)
    slides = read_slides(cache, config.neighbors)
    common = cache.fingerprint().common
    say_cache(cache, slides, common)

    patients = patients_of(cache.dataset, slides)
    splits = make_splits(cache.dataset, list(slides), patients, config.split, config.folds, config.seed)
    chosen = choose_folds(splits, config.fold)
    panel = choose_panel(config.genes, config.n_genes, {s: (v.counts, v.genes) for s, v in slides.items()})
    setting = make_setting(config, cache.dataset, common, slides, panel)
    folder = folder_option(config.runs, "HIST_RUNS", "runs") / cache.dataset / setting.name
    if config.resume:
        check_resumable(folder, chosen)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else "the CPU (no GPU found)"
    say(
        f"{variant.name}: {len(panel)} genes, {config.neighbors} neighbours, width {setting.model.width}, on {where}; "
        f"{folder}"
    )
    data = assemble(slides, config.neighbors, panel, device)

    for i, split in chosen.items():
        say_split(i, split, patients)
        if done_before(Fold(folder / f"fold{i}"), split):
            say(f"fold {i}: done before, not run again")
            continue
        with progress(f"fold {i}", setting.loop.epochs, "epochs") as meter:

            def on_epoch(row: dict[str, float], meter: Any = meter) -> None:
                meter.advance(int(row["epoch"]) + 1 - meter.done, f"validation MSE {row['val_mse']:.4f}")

            metrics = run_fold(folder / f"fold{i}", setting, variant, data, slides, split, device, on_epoch)
        controls = metrics["controls"]
        best = max((k for k in metrics["pooled"] if k.startswith("pcc@")), key=lambda k: k == "pcc@50", default="mse")
        say(
            f"fold {i}: best epoch {metrics['best_epoch']} of {metrics['epochs']}, {METRIC_NAMES[best]} "
            f"{metrics['pooled'][best]:.3f} "
            f"(ridge {controls['ridge'][best]:.3f}, permuted {controls['permuted'][best]:.3f})"
        )
    print_summary(write_summary(folder), variant.name)
    say(f"{folder}: summary.json; in each fold maps.png, training.png, metrics.json, predictions.h5ad")
    return 0


def say_cache(cache: Cache, slides: dict[str, CachedSlide], common: dict[str, Any]) -> None:
    """What is trained on; missing slides and untrained weights aloud."""
    from hist_cache.datasets import dataset_named

    spots = sum(len(s) for s in slides.values())
    say(
        f"{cache.folder}: {len(slides)} slides, {spots:,} spots, "
        f"embeddings of {common['encoder']} ({common['precision']})"
    )
    if not common["pretrained"]:
        warn(f"{common['encoder']} has random weights: metrics show that the method runs, not what it can do")
    if missing := set(dataset_named(cache.dataset).ids) - set(slides):
        warn(f"the cache holds {len(slides)} of the {len(slides) + len(missing)} slides of {cache.dataset}")


def patients_of(dataset: str, slides: dict[str, CachedSlide]) -> dict[str, str]:
    """Slide -> patient, from the dataset's table, else from the slides' metadata; empty where unknown."""
    from hist_cache.datasets import dataset_named

    if known := dataset_named(dataset).patients:
        return {s: known[s] for s in slides if s in known}
    found = {s: str(v.attributes["patient"]) for s, v in slides.items() if "patient" in v.attributes}
    return found if len(found) == len(slides) else {}


def choose_folds(splits: list[Split], fold: int | None) -> dict[int, Split]:
    if fold is not None and not 0 <= fold < len(splits):
        raise InputError(f"--fold {fold}: there are splits 0 to {len(splits) - 1}")
    return {i: s for i, s in enumerate(splits) if fold is None or i == fold}


def make_setting(
    config: Config, dataset: str, common: dict[str, Any], slides: dict[str, CachedSlide], panel: list[str]
) -> Setting:
    """Options over the dataset's defaults over the paper's."""
    from hist_cache.datasets import dataset_named
    from train.loop import LoopConfig
    from train.model import ModelConfig
    from train.runs import Setting

    preset = dataset_named(dataset).training

    def resolve(kind: Any, **fixed: Any) -> Any:
        values = dict(fixed)
        for field in dataclasses.fields(kind):
            asked = getattr(config, field.name, None)
            if field.name not in values and asked is not None and asked is not False:
                values[field.name] = asked
            elif field.name not in values and field.name in preset:
                values[field.name] = preset[field.name]
        return kind(**values)

    embedding_width = next(iter(slides.values())).embeddings.shape[1]
    return Setting(
        dataset=dataset,
        variant=config.ablation,
        cache=common,
        slides=tuple(slides),
        neighbors=config.neighbors,
        genes=config.genes,
        n_genes=len(panel),
        panel=hashlib.sha256("\n".join(panel).encode()).hexdigest(),
        split=config.split or "default",
        protocol=PROTOCOL,
        model=resolve(ModelConfig, embedding_width=embedding_width, n_genes=len(panel)),
        loop=resolve(LoopConfig),
    )


def done_before(fold: Fold, split: Split) -> bool:
    """Whether a fold is finished; `InputError` where its slides were others (a file of splits has changed)."""
    if not fold.finished:
        return False
    if {k: set(v) for k, v in fold.config["split"].items()} != {
        k: set(v) for k, v in dataclasses.asdict(split).items()
    }:
        raise InputError(f"{fold.folder}: was run on other slides than this split has; give another --runs folder")
    return True


def check_resumable(folder: Path, chosen: dict[int, Split]) -> None:
    from hist_cache.runs import Fold

    if not any(Fold(folder / f"fold{i}").stopped for i in chosen):
        raise InputError(
            f"--resume: no stopped run in {folder}; leave it out, or give the options of the run that stopped"
        )


def say_split(i: int, split: Split, patients: dict[str, str]) -> None:
    from hist_cache.splits import patient_leaks

    say(f"fold {i}: train {len(split.train)}, validate {', '.join(split.val)}, test {', '.join(split.test)}")
    if leaks := patient_leaks(split, patients):
        warn(f"fold {i}: {', '.join(leaks)} in train and test: the metrics are optimistic (--split patient avoids it)")


def print_summary(summary: dict[str, Any], variant: str) -> None:
    """The table: mean and standard deviation over folds, the run first, then what it must beat."""
    from rich.table import Table

    n = len(summary["folds"])
    table = Table(
        title=f"mean{' ± std' if n > 1 else ''} over {n} fold{'s' * (n > 1)}, pooled over test spots; "
        "MSE and MAE in log2(1 + count)"
    )
    table.add_column("", no_wrap=True)
    keys = [k for k in METRIC_NAMES if k in next(iter(summary["mean"].values()))]
    for key in keys:
        table.add_column(METRIC_NAMES[key], justify="right", no_wrap=True)
    labels = {
        "hist": f"HiST, {variant}",
        "hist (slide mean)": f"HiST, {variant}, slide by slide",
        "permuted": "HiST, permuted",
    }
    labels |= {"train_mean": "train mean", "ridge": "ridge, PCA-256"}
    for row, mean in summary["mean"].items():
        std = summary["std"][row]
        cells = [f"{mean[k]:.3f}" + (f" ± {std[k]:.3f}" if n > 1 else "") for k in keys]
        table.add_row(labels.get(row, row), *cells)
    out.print(table)
