"""The options of hist-train. Those of models and of the training loop come from their own dataclasses."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hist_cache.devices import DEVICE_HELP
from hist_cache.engine import ADDRESS_HELP, CPUS_HELP, ENGINE_HELP, GPUS_HELP, INSECURE_HELP, WORKERS_HELP, EngineName
from hist_cache.options import CommandOptions, option
from hist_cache.own_file import OWN_HELP
from hist_cache.values import COUNT, FRACTION, INDEX, POSITIVE, Interval
from train.fit.config import SEEDS, FitConfig
from train.models.registry import model_entries
from train.recipes.config import RecipeConfig
from train.recipes.table import recipe_names

HERE = Path(__file__).parent
FINETUNING = (  # what only fine-tuning reads
    *("lora_layers", "lora_rank", "lora_alpha", "lora_dropout", "no_token_cache", "augment", "micro_batch"),
    *("grad_checkpoint", "data_root", "weights"),
)

ADAPTED = ("data_root", "weights")  # what of these --lora reads too


def _row_names(file: str) -> str:
    """The names of a table's rows, for the help."""
    return ", ".join(tomllib.loads((HERE / file).read_text("utf-8")))


VARIANTS, PROTOCOLS = _row_names("models/variants.toml"), _row_names("experiments/protocols.toml")
RECIPES = ", ".join(recipe_names())
TABLES = _row_names("experiments/tables.toml")
MODELS = ", ".join(entry.name for entry in model_entries())


@dataclass(frozen=True)
class TrainOptions(CommandOptions):
    """All options of hist-train but those of `config_groups`."""

    dataset: str | None = option(
        None, "a dataset that hist-extract has cached (default: the one extracted last)", "NAME", group="data"
    )
    cache: str | None = option(None, "folder of the cache (default: $HIST_CACHE or ./cache)", "D")
    runs: str | None = option(None, "folder of the runs (default: $HIST_RUNS or ./runs)", "D")
    encoder: str | None = option(None, "whose cache, where the dataset has several", "NAME")
    own: str | None = option(None, OWN_HELP, "FILE")
    test_dataset: str | None = option(None, "test on all slides of this dataset instead of the split's own", "NAME")
    table: int | None = option(
        None,
        f"a table of the paper by number: sets the options that it compares ({TABLES})",
        "N",
        group="experiment",
        within=COUNT,
    )
    model: str = option("hist", f"models: {MODELS}, or all", "NAMES")
    ablation: str = option("full", f"variants of hist: {VARIANTS}, or all", "NAMES")
    neighbors: str | int = option("6", "neighbourhood sizes: 6, 18, 36 (rings 1, 2, 3)", "K")
    genes: str = option("hmhvg", "gene panels: hmhvg, hvg, a file of names", "PANELS")
    n_genes: str | int | None = option(None, "panel sizes (default: 200 for hmhvg, 300 for hvg, all of a file)", "N")
    split: str | None = option(
        None, "slide, patient, loso, within (bands of every slide), a file or folder (default: the dataset's)", "KINDS"
    )
    validate_on: Literal["next", "alike"] | None = option(
        None,
        "with --split loso: the slide after the test slide, or several alike, of its patient where they can be "
        "(default: the protocol's)",
    )
    protocol: str = option("paper", f"what the sources disagree on: {PROTOCOLS}", "NAMES")
    recipe: str = option("paper", f"what makes a model stronger: {RECIPES}", "NAMES")
    recipe_file: str | None = option(None, "a TOML file of further recipes, like train/recipes/recipes.toml", "FILE")
    transform: str = option("log2", "of the counts: log2 (1 + count), ln_cp10k (1 + count per 10,000)", "NAMES")
    panel_from: Literal["all", "train"] | None = option(
        None, "choose genes on all slides, or on each split's train slides (default: the protocol's)"
    )
    edge_spots: Literal["keep", "drop"] | None = option(
        None, "keep or drop spots that lack a neighbour (default: the protocol's)"
    )
    tested: Literal["best", "last"] | None = option(
        None, "test the weights of the best validation epoch, or the last (default: the protocol's)"
    )
    niche_profile: Literal["log_of_mean", "mean_of_logs"] | None = option(
        None, "average a niche's counts before or after the logarithm (default: the protocol's)"
    )
    folds: int | None = option(None, "run the first so many splits (default: all there are, or 5)", "N", within=COUNT)
    fold: int | None = option(None, "run this split only, counted from 0", "I", within=INDEX)
    seed: int | str = option(
        42,
        "seeds weights, dropout, order of spots and the permuted baseline, also drawn splits (1,2,3 runs each)",
        "N",
        within=SEEDS,
        several=True,
    )
    split_seed: int | None = option(
        None, "seeds the splits that are drawn (default: the seed; of several the first)", "N", within=SEEDS
    )
    precision: Literal["auto", "bf16", "fp32"] = option(
        "auto", "of matrix products in training; auto: bf16 where it is measured to be faster, or that of begun runs"
    )
    finetune_lora: bool = option(
        False, "fine-tune the encoder's last blocks by LoRA together with the model", group="fine-tuning"
    )
    lora_layers: str | int | None = option(
        None, "last blocks that are fine-tuned; 0 trains on the cache (default: 11, or as many as there are)", "L"
    )
    lora_rank: int = option(
        4, "rank of the adapters, unless the protocol says otherwise", "R", within=Interval(1, 10_000)
    )
    lora_alpha: float = option(8.0, "their update is scaled by alpha / rank; as with the rank", "X", within=POSITIVE)
    lora_dropout: float = option(0.1, "dropout before the adapters; as with the rank", "X", within=FRACTION)
    no_token_cache: bool = option(False, "fine-tune from the crops, not from activations cached on disk")
    augment: bool = option(False, "turn and mirror crops while fine-tuning (from the crops, without token cache)")
    micro_batch: int | None = option(
        None, "spots encoded at once; the loss stays that of the whole batch", "N", within=COUNT
    )
    grad_checkpoint: bool = option(False, "fine-tune with less memory, computing activations twice")
    data_root: str | None = option(None, "folder of the slides (default: where the cache's came from)", "D")
    weights: str | None = option(None, "file with the encoder's weights", "F")
    lora: str | None = option(
        None, "train each fold on embeddings of its adapter in a run of --finetune-lora, computed where missing", "RUN"
    )
    allow_leak: bool = option(False, "test slides that the embeddings' adapter has seen; the results are marked")
    resume: bool = option(False, "only go on with a stopped run: an error where there is none", group="running")
    jobs: int | None = option(
        None,
        "folds trained at once (default: one a CPU core, or one a GPU); with --finetune-lora processes that share "
        "each batch, with GPUs one on each (default: 1)",
        "N",
        within=COUNT,
    )
    engine: EngineName = option("local", ENGINE_HELP)
    address: str | None = option(None, ADDRESS_HELP, "HOST:PORT")
    workers: int | None = option(None, WORKERS_HELP, "N", within=COUNT)
    cpus_per_worker: int = option(1, CPUS_HELP, "N", within=COUNT)
    gpus_per_worker: int | None = option(None, GPUS_HELP, "N", within=COUNT)
    insecure: bool = option(False, INSECURE_HELP)
    device: str = option("auto", DEVICE_HELP, "DEVICE")
    genes_to_plot: str | None = option(None, "genes on maps.png, such as COL1A1,FN1 (default: the best)", "NAMES")
    logger: Literal["wandb", "mlflow", "tensorboard"] | None = option(
        None, "also log losses, geometry, metrics and figures there (pip install hist-cache[loggers])"
    )
    dry_run: bool = option(False, "say what would be run, and run nothing")
    debug: bool = option(False, "show a traceback for every error")

    @property
    def recipe_path(self) -> Path | None:
        """The file of further recipes, if there is one."""
        return Path(self.recipe_file) if self.recipe_file else None

    @classmethod
    def config_groups(cls) -> list[tuple[str, type]]:
        """The training loop's options, those of a recipe, and those of each model."""
        models = [(f"model {entry.name}", entry.config) for entry in model_entries()]
        return [("training (defaults may be the dataset's)", FitConfig), ("recipe", RecipeConfig), *models]
