"""The options of hist-train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hist_cache.options import option


@dataclass(frozen=True)
class Config:
    dataset: str | None = option(
        None, "a dataset that hist-extract has cached (default: the one extracted last)", "NAME"
    )
    cache: str | None = option(None, "folder of the cache (default: $HIST_CACHE or ./cache)", "D")
    runs: str | None = option(None, "folder of the runs (default: $HIST_RUNS or ./runs)", "D")
    encoder: str | None = option(None, "whose cache, where the dataset has several", "NAME")
    test_dataset: str | None = option(None, "test on all slides of this dataset instead of the split's own", "NAME")
    table: int | None = option(None, "a table of the paper by number: sets the options that it compares", "N")
    ablation: str = option("full", "variants: full, no_gi_hea, no_hea, no_hha, meru, clip, ..., or all", "NAMES")
    neighbors: str | int = option("6", "neighbourhood sizes: 6, 18, 36 (rings 1, 2, 3)", "K")
    genes: str = option("hmhvg", "gene panels: hmhvg, hvg, a file of names", "PANELS")
    n_genes: str | int | None = option(None, "panel sizes (default: 200 for hmhvg, 300 for hvg, all of a file)", "N")
    split: str | None = option(
        None, "slide, patient, loso, a file or folder of splits (default: the dataset's)", "KINDS"
    )
    protocol: str = option("paper", "paper, release, strict: what the sources disagree on", "NAMES")
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
    finetune_lora: bool = option(False, "tune the encoder's last blocks by LoRA together with HiST")
    lora_layers: str | int = option("11", "last blocks that are tuned; 0 trains on the cache", "L")
    lora_rank: int = option(4, "rank of the adapters", "R")
    lora_alpha: float = option(8.0, "their update is scaled by alpha / rank", "X")
    lora_dropout: float = option(0.1, "dropout before the adapters", "X")
    no_token_cache: bool = option(False, "tune from the crops, not from activations cached on disk")
    augment: bool = option(False, "turn and mirror crops while tuning (from the crops, without token cache)")
    micro_batch: int | None = option(None, "spots encoded at once; the loss stays that of the whole batch", "N")
    grad_checkpoint: bool = option(False, "tune with less memory, computing activations twice")
    precision: Literal["bf16", "fp32"] | None = option(
        None, "of the encoder while it is tuned (default: bf16 where that is fast)"
    )
    data_root: str | None = option(None, "slides to tune on (default: where the cache's came from)", "D")
    weights: str | None = option(None, "file with the encoder's weights, to tune it", "F")
    resume: bool = option(False, "only go on with a stopped run: an error where there is none")
    jobs: int | None = option(None, "folds trained at once (default: one a CPU core, or one on a GPU)", "N")
    genes_to_plot: str | None = option(None, "genes on maps.png, such as COL1A1,FN1 (default: the best)", "NAMES")
    dry_run: bool = option(False, "say what would be run, and run nothing")
    debug: bool = option(False, "show a traceback for every error")
