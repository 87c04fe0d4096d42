"""The options of hist-extract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hist_cache.devices import DEVICE_HELP
from hist_cache.options import CommandOptions, option
from hist_cache.own_file import OWN_HELP
from hist_cache.values import INDEX, Interval


@dataclass(frozen=True)
class ExtractOptions(CommandOptions):
    """The options of hist-extract."""

    dataset: str | None = option(
        None,
        "kidney, colorectum, skin, lung, kidney_papilla, her2st, demo, yours in hist.toml; with --ids any name",
        "NAME",
    )
    ids: str | None = option(
        None, "slides instead of the dataset's own: SPA138,SPA139 or NCBI692-714, or a file with one a line", "IDS"
    )
    data_root: str | None = option(None, "folder with st/, wsis/ and metadata/ (default: $HIST_DATA or ./data)", "D")
    own: str | None = option(None, OWN_HELP, "FILE")
    cache: str | None = option(None, "folder of the cache (default: $HIST_CACHE or ./cache)", "D")
    encoder: str | None = option(
        None, "uni, uni2-h, virchow2, ..., timm:NAME, demo, one of your hist.toml (default: the dataset's)", "NAME"
    )
    weights: str | None = option(None, "file or folder with the encoder's weights", "F")
    random_weights: bool = option(False, "run the encoder with seeded random weights (recorded in the cache)")
    neighbors: str = option("6", "neighbourhood sizes: any of 6, 18, 36 (rings 1, 2, 3)", "K,K")
    min_spot_um: float = option(
        0.0, "spot crops are at least this wide, um (the release protocol: 112)", "UM", within=Interval(0, 1000)
    )
    precision: Literal["bf16", "fp32"] | None = option(None, "default: bf16 where the machine computes it fast")
    device: str = option("auto", DEVICE_HELP, "DEVICE")
    any_scale: bool = option(False, "accept pixels, pitches and spots of any size (else 0.05-10, 5-1000, 5-1000 um)")
    lora: str | None = option(
        None, "embed with the adapter of a run of hist-train --finetune-lora (or of a fold)", "RUN"
    )
    tokens_at: int | None = option(
        None,
        "also store the activations entering this block (from 0), for fine-tuning to start there",
        "BLOCK",
        within=INDEX,
    )
    status: bool = option(False, "show what the cache holds, and exit")
    verify: bool = option(False, "re-read the cache and check every digest, and exit")
    dry_run: bool = option(False, "open every slide, show what would be computed, its size and time, and exit")
    download: bool = option(False, "fetch the dataset's missing files from Hugging Face, and exit")
    debug: bool = option(False, "show a traceback for every error")
