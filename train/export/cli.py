"""hist-export: a run as a folder that predicts elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hist_cache.console import say, size
from hist_cache.errors import InputError, keeping
from hist_cache.options import CommandOptions, folder_option, option, parse, positional, run

DESCRIPTION = """Export a run: one folder with weights, panel, model card and what embeddings must be made with, which
hist-predict --run takes on any machine. No training data is in it. The encoder's own weights are not either, because
their licences rarely allow it."""


@dataclass(frozen=True)
class ExportOptions(CommandOptions):
    """The options of hist-export."""

    runs: tuple[str, ...] = positional("folder of a run, or of one of its folds", "RUN")
    out: str | None = option(None, "where to write (default: ./exported/<run>)", "D")
    cache: str | None = option(None, "folder of the cache (default: $HIST_CACHE or ./cache)", "D")
    lora: str | None = option(None, "the adapter that made the embeddings of the run, or the run it belongs to", "RUN")
    debug: bool = option(False, "show a traceback for every error")


def main(argv: Sequence[str] | None = None) -> int:
    """Run hist-export; returns the exit code."""
    options = parse(ExportOptions, "hist-export", DESCRIPTION, argv)
    return run(export, options, options.debug)


def export(options: ExportOptions) -> int:
    """Run the command; returns the exit code."""
    from hist_cache.files import PARTIAL, write_text
    from train.experiments.fold_files import read_metrics
    from train.export.bundle import check_exportable, export_fold
    from train.export.card import model_card
    from train.predict.folds import read_folds, run_name

    if len(options.runs) != 1:
        raise InputError(f"hist-export takes one run at a time, not {len(options.runs)}")
    source = Path(options.runs[0])
    cache_root = folder_option(options.cache, "HIST_CACHE", "cache")
    lora = Path(options.lora) if options.lora else None
    folds = read_folds(source, lora, cache_root)
    check_exportable(folds)
    out = Path(options.out) if options.out else Path("exported") / run_name(source)
    if out.exists():
        raise InputError(f"--out {out}: is there already; give another folder, or delete it")
    aside = out.with_name(f"{out.name}{PARTIAL}")
    shutil.rmtree(aside, ignore_errors=True)  # of an export that was killed
    with keeping(lambda: "nothing"):
        for fold in folds:
            export_fold(fold, aside / fold.folder.name, cache_root)
        copies = read_folds(aside, None, cache_root)
        n_bytes = sum(file.stat().st_size for file in aside.rglob("*") if file.is_file())
        write_text(aside / "README.md", model_card(copies, [read_metrics(fold.folder) for fold in copies], n_bytes))
        aside.rename(out)
    say(f"{out}: {len(folds)} folds, {size(n_bytes)}; hist-predict --run {out} --wsi SLIDE")
    return 0
