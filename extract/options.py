"""The options of hist-extract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from extract.encoders.registry import encoder_names
from hist_cache.datasets import dataset_names
from hist_cache.devices import DEVICE_HELP
from hist_cache.engine import ADDRESS_HELP, CPUS_HELP, ENGINE_HELP, GPUS_HELP, INSECURE_HELP, WORKERS_HELP, EngineName
from hist_cache.options import CommandOptions, option
from hist_cache.own_file import OWN_HELP
from hist_cache.values import COUNT, INDEX, Interval


@dataclass(frozen=True)
class ExtractOptions(CommandOptions):
    """The options of hist-extract."""

    dataset: str | None = option(
        None,
        f"{', '.join(dataset_names())}, yours in hist.toml; with --ids any name",
        "NAME",
        group="slides",
    )
    ids: str | None = option(
        None, "slides instead of the dataset's own: SPA138,SPA139 or NCBI692-714, or a file with one a line", "IDS"
    )
    data_root: str | None = option(None, "folder with st/, wsis/ and metadata/ (default: $HIST_DATA or ./data)", "D")
    own: str | None = option(None, OWN_HELP, "FILE")
    cache: str | None = option(None, "folder of the cache (default: $HIST_CACHE or ./cache)", "D")
    any_scale: bool = option(False, "accept pixels, pitches and spots of any size (else 0.05-10, 5-1000, 5-1000 um)")
    download: bool = option(False, "fetch the dataset's missing files from Hugging Face, and exit")
    encoder: str | None = option(
        None,
        f"{', '.join(encoder_names())}, timm:NAME, one of your hist.toml (default: the dataset's)",
        "NAME",
        group="encoder",
    )
    weights: str | None = option(None, "file or folder with the encoder's weights", "F")
    random_weights: bool = option(False, "run the encoder with seeded random weights (recorded in the cache)")
    lora: str | None = option(
        None, "embed with the adapter of a run of hist-train --finetune-lora (or of a fold)", "RUN"
    )
    precision: Literal["bf16", "fp32"] | None = option(None, "default: bf16 where the machine computes it fast")
    device: str = option("auto", DEVICE_HELP, "DEVICE")
    neighbors: str = option("6", "neighbourhood sizes: any of 6, 18, 36 (rings 1, 2, 3)", "K,K", group="crops")
    min_spot_um: float = option(
        0.0, "spot crops are at least this wide, um (the release protocol: 112)", "UM", within=Interval(0, 1000)
    )
    tokens_at: int | None = option(
        None,
        "also store the activations entering this block (from 0), for fine-tuning to start there",
        "BLOCK",
        within=INDEX,
    )
    status: bool = option(False, "show what the cache holds, and exit", group="instead of computing")
    verify: bool = option(False, "re-read the cache and check every digest, and exit")
    dry_run: bool = option(False, "open every slide, show what would be computed, its size and time, and exit")
    jobs: int | None = option(
        None, "slides extracted at once, each by a process (default: one a GPU, or one)", "N", "running", within=COUNT
    )
    engine: EngineName = option("local", ENGINE_HELP)
    address: str | None = option(None, ADDRESS_HELP, "HOST:PORT")
    workers: int | None = option(None, WORKERS_HELP, "N", within=COUNT)
    cpus_per_worker: int = option(1, CPUS_HELP, "N", within=COUNT)
    gpus_per_worker: int | None = option(None, GPUS_HELP, "N", within=COUNT)
    insecure: bool = option(False, INSECURE_HELP)
    no_wait: bool = option(False, "end where other commands are at all slides that are left, instead of waiting")
    debug: bool = option(False, "show a traceback for every error")
