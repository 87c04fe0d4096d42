"""The embeddings that folds read: computed where the cache has none, once for all folds of the same encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from extract.encoders.adapters import merge_adapter
from extract.identity import common_identity, folder_name
from extract.loading import check_plan
from extract.pipeline import crops_per_second, start_pipeline
from extract.plan import Request, plan_extraction
from extract.scheduler import run_plan
from extract.virtual_embeddings import embed_virtual_slide
from extract.virtual_slides import VirtualSlides
from hist_cache.cache import Cache
from hist_cache.console import progress, say
from hist_cache.devices import device_name
from hist_cache.errors import HistError
from hist_cache.fingerprint import CropRule
from hist_cache.values import Precision
from train.finetune.encoder import load_cached_encoder
from train.predict.folds import TrainedFold, plain_identity

FOLDER = "virtual"  # of the cache, in place of a dataset


@dataclass(frozen=True)
class Encoding:
    """An encoder, and the folds that read its embeddings.

    Attributes:
        adapter: Folder of its adapter; None for the encoder as it is.
        precision: That it runs in.
        folds: At least one.
    """

    adapter: Path | None
    precision: Precision
    folds: list[TrainedFold]


def encodings(folds: Sequence[TrainedFold]) -> list[Encoding]:
    """The encoders of folds: one for all, or one for each adapter."""
    of_folds: dict[tuple[Path | None, Precision], list[TrainedFold]] = {}
    for fold in folds:
        tuned = fold.setting.finetuning
        precision: Precision = tuned.precision if tuned else fold.setting.cache["precision"]
        of_folds.setdefault((fold.adapter, precision), []).append(fold)
    return [Encoding(*key, own) for key, own in of_folds.items()]


class Embedder:
    """Embeds slides with one encoder.

    Args:
        encoding: Which one.
        slides: The slides.
        cache_root: Folder of all caches.
        weights: File of the encoder's weights, where they are not found by themselves.
        device: Where the encoder runs.

    Attributes:
        cache: Where the embeddings are kept.

    Raises:
        InputError: The weights are not those of the run.
    """

    def __init__(
        self, encoding: Encoding, slides: VirtualSlides, cache_root: Path, weights: Path | None, device: torch.device
    ) -> None:
        fold = encoding.folds[0]
        encoder = load_cached_encoder(plain_identity(fold.setting), weights)
        adapter = "" if encoding.adapter is None else f" with the adapter {encoding.adapter}"
        if encoding.adapter is not None:
            encoder = merge_adapter(encoder, encoding.adapter)
        self._pipeline = start_pipeline(encoder, encoding.precision, device)
        min_spot_um = CropRule.from_identity(fold.setting.cache).min_spot_um
        common = common_identity(encoder, encoding.precision, min_spot_um)
        self._request = Request(slides, (fold.setting.neighbors,), min_spot_um, common)
        self.cache = Cache(cache_root / FOLDER / folder_name(encoder, common))
        say(f"encoder {encoder.name} ({encoder.source}){adapter} in {encoding.precision} on {device_name(device)}")

    def run(self, names: Sequence[str], ready: Callable[[str], None]) -> tuple[list[HistError], list[str]]:
        """Compute what the cache lacks.

        Args:
            names: Of the slides in the cache.
            ready: Called with the name of each slide whose file is complete now; from another thread for those that
                were not complete before.

        Returns:
            The errors of slides that failed, and the names of those whose files are complete and made from what is
            there now; other processes may have made some of them.
        """
        plan = plan_extraction(self._request, list(names), self.cache.folder)
        todo = [task for task in plan.tasks if task.state != "complete"]
        say(f"{self.cache.folder}: {len(plan.tasks) - len(todo)} slides complete, {len(todo)} to embed")
        for task in plan.tasks:
            if task.state == "complete":
                ready(task.files.id)
        pipeline = self._pipeline
        details = {"device": str(pipeline.device), "weights": pipeline.encoder.source}
        with progress("embed", len(todo), "slides") as meter:

            def advance(share: float) -> None:
                meter.advance(share, f"{pipeline.clock.crops / max(pipeline.clock.seconds, 1e-9):,.1f} crops/s")

            failed = run_plan(
                plan, self._request, partial(embed_virtual_slide, self._request, pipeline, advance, ready), details
            )
        again = plan_extraction(self._request, [task.files.id for task in plan.tasks], self.cache.folder)
        return plan.failed + failed, [task.files.id for task in again.tasks if task.state == "complete"]

    def check(self, names: Sequence[str]) -> list[HistError]:
        """Open the slides as `run` would, say what it would do, and return the errors of those that would fail."""
        plan = plan_extraction(self._request, list(names), self.cache.folder)
        todo = [task for task in plan.tasks if task.state != "complete"]
        rate = crops_per_second(self._pipeline)
        say(
            f"{self.cache.folder}: {len(plan.tasks) - len(todo)} slides complete, {len(todo)} to embed, at about "
            f"{rate:,.1f} crops/s, two crops a spot"
        )
        return plan.failed + check_plan(plan, self._request)

    def close(self) -> None:
        """End the threads that read pixels."""
        self._pipeline.close()
