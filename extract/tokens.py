"""Tokens that enter a block, for fine-tuning that starts there: planned, announced, and computed slide by slide.

The pipeline is the one for embeddings, with an encoder that stops before the block. The tokens of a slide are written
to its file as the batches come, so that memory stays small however many there are.
"""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from extract.embeddings import missing_crops, progress_callback
from extract.encoders.encoder import Encoder, check_block, first_blocks_encoder, token_shape
from extract.encoders.lora import adapted_names
from extract.identity import common_identity
from extract.loading import Loaded
from extract.pipeline import Pipeline, start_pipeline
from extract.plan import ExtractionPlan, Request, Task, plan_extraction
from extract.scheduler import Finish, run_plan
from hist_cache.cache import Cache
from hist_cache.console import Meter, progress, size
from hist_cache.disk_room import check_room, free_bytes
from hist_cache.errors import HistError, InputError, SlideError, StaleCacheError
from hist_cache.fingerprint import CropRule, Fingerprint, differences, is_tuned
from hist_cache.sources import HestFolder
from hist_cache.token_files import SPOT, token_bytes, token_names
from hist_cache.token_writer import TokenWriter, write_tokens

log = logging.getLogger(__name__)

MAX_FLOAT16 = 65504
MAX_PENDING = 2  # batches that may wait to be written


@dataclass(frozen=True)
class TokenPlan:
    """Which tokens are to be computed."""

    plan: ExtractionPlan
    request: Request
    folder: Path
    """The cache folder."""
    shape: tuple[int, int]
    """(T, W): tokens per crop, and values per token."""

    @property
    def bytes(self) -> int:
        """Bytes that the new tokens take on disk."""
        return token_bytes(self.plan.crops, self.shape)

    @property
    def free_needed(self) -> int:
        """Bytes that must be free on disk."""
        return self.bytes + self.plan.largest_rewritten

    def pipeline(self, encoder: Encoder, like: Pipeline) -> closing[Pipeline]:
        """Start a pipeline that gives these tokens; use it in a `with` statement.

        Args:
            encoder: The whole encoder.
            like: A pipeline whose device and precision are used.
        """
        assert self.request.tokens_at is not None
        first_blocks = first_blocks_encoder(encoder, self.request.tokens_at)
        return closing(start_pipeline(first_blocks, like.precision, like.device))


def plan_tokens(request: Request, encoder: Encoder, block: int, slides: Sequence[str], folder: Path) -> TokenPlan:
    """Find out which tokens are missing.

    Args:
        request: What is to be computed, apart from the block.
        encoder: The encoder that made the cache.
        block: The block that the tokens enter, from 0.
        slides: IDs of the slides.
        folder: The cache folder.

    Raises:
        InputError: The encoder has no such block.
    """
    check_block(encoder, block)
    request = replace(request, tokens_at=block)
    return TokenPlan(plan_extraction(request, list(slides), folder), request, folder, token_shape(encoder))


def announce_tokens(tokens: TokenPlan) -> None:
    """Log which slides cannot be used, and what will be computed and how large it is.

    Raises:
        HistError: There is not enough room on the disk.
    """
    plan, (count, width) = tokens.plan, tokens.shape
    for error in plan.failed:
        log.warning(str(error))
    complete = sum(task.state == "complete" for task in plan.tasks)
    free = free_bytes(tokens.folder)
    log.info(
        f"tokens entering block {tokens.request.tokens_at} ({count} x {width} float16 a crop, "
        f"{size(token_bytes(1, tokens.shape))}): {complete} slides complete, {len(plan.tasks) - complete} to do, "
        f"{len(plan.failed)} failed: {plan.crops:,} crops, {size(tokens.bytes)} on disk ({size(free)} free)"
    )
    check_room(
        tokens.folder,
        tokens.free_needed,
        "tokens",
        "make room, give a --cache on a larger disk, or fine-tune without stored tokens (hist-train --no-token-cache)",
    )


def compute_tokens(tokens: TokenPlan, pipeline: Pipeline, details: dict[str, Any]) -> list[HistError]:
    """Compute the missing tokens of all slides that have embeddings.

    Args:
        tokens: What is to be computed.
        pipeline: Gives tokens; see `TokenPlan.pipeline`.
        details: What the provenance states besides: device, weights.

    Returns:
        The errors of slides that failed, in planning or now.
    """
    plan = with_embeddings(tokens.plan)
    with progress("tokens", plan.crops, "crops") as meter:
        produce = partial(stream_slide, tokens.request, pipeline, meter)
        return plan.failed + run_plan(plan, tokens.request, produce, details)


def with_embeddings(plan: ExtractionPlan) -> ExtractionPlan:
    """Return the part of a plan for tokens whose slides have embeddings by now."""
    tasks = [t for t in plan.tasks if t.path.with_name(f"{t.files.id}.h5").exists()]
    return replace(plan, tasks=tasks, crops=sum(task.crops for task in tasks))


def stream_slide(
    request: Request, pipeline: Pipeline, meter: Meter, task: Task, loaded: Loaded, fingerprint: Fingerprint
) -> Finish:
    """Compute the tokens of a slide and write them as they come. The arguments are those of `embed_slide`.

    Returns:
        A function that does nothing, because the file is written already.
    """
    crops = missing_crops(task, loaded, request)
    names = [token_name(c.name) for c in crops]
    attributes = {"slide": task.files.id, "block": request.tokens_at}
    with (
        write_tokens(
            task.path, names, loaded.spots.barcodes, token_shape(pipeline.encoder), fingerprint, attributes
        ) as writer,
        ThreadPoolExecutor(1, "tokens") as thread,
    ):
        background = BackgroundWriter(task, writer, thread)
        callback = progress_callback(pipeline, meter)
        pipeline.stream(loaded.image, loaded.spots.coords, crops, background.put, callback)
        background.wait(0)
    return lambda: None


def token_name(crops: str) -> str:
    """Return the name of crops in a token file: `spot` -> `spot`, `6` -> `niche/6`."""
    return SPOT if crops == SPOT else token_names([int(crops)])[1]


class BackgroundWriter:
    """Writes tokens in a thread while the encoder goes on; the encoder waits if too many batches are not written yet.

    Args:
        task: The slide, for messages.
        writer: Writes to the slide's token file.
        thread: The thread.
    """

    def __init__(self, task: Task, writer: TokenWriter, thread: ThreadPoolExecutor) -> None:
        self._task, self._writer, self._thread = task, writer, thread
        self._pending: deque[Future[None]] = deque()

    def put(self, name: str, rows: np.ndarray, tokens: Tensor) -> None:
        """Have tokens written.

        Args:
            name: Name of the crops: `spot` or a neighbourhood size.
            rows: (k,) numbers of the crops.
            tokens: (k, T, W) tokens of any float type, on any device.

        Raises:
            SlideError: Tokens of this or an earlier batch do not fit float16.
        """
        half = tokens.to(torch.float16)
        overflows = (~torch.isfinite(half)).sum()
        self._pending.append(self._thread.submit(self._write, token_name(name), rows, half, overflows, tokens))
        self.wait(MAX_PENDING)

    def wait(self, max_pending: int) -> None:
        """Wait until at most `max_pending` batches are not written yet; raises the error of the thread, if any."""
        while len(self._pending) > max_pending:
            self._pending.popleft().result()

    def _write(self, name: str, rows: np.ndarray, half: Tensor, overflows: Tensor, tokens: Tensor) -> None:
        if count := int(overflows):
            largest = float(tokens.float().abs().nan_to_num(float("inf"), posinf=float("inf")).max())
            raise SlideError(
                self._task.files.id,
                self._task.path,
                f"{count:,} activations of {name} crops entering the block do not fit float16 (up to "
                f"{largest:.6g}; it ends at {MAX_FLOAT16:,})",
                "fine-tune without stored tokens (hist-train --no-token-cache), or choose another block",
            )
        self._writer.put(name, rows, half.cpu().numpy())


def plan_cache_tokens(
    cache: Cache, slides: Sequence[str], sizes: Sequence[int], encoder: Encoder, block: int, data_root: Path
) -> TokenPlan:
    """Find out which tokens a cache lacks, and announce it.

    Args:
        cache: The cache.
        slides: IDs of slides of the cache.
        sizes: Neighbourhood sizes of the niche crops.
        encoder: The encoder that made the cache, without an adapter. It is not changed.
        block: The block that the tokens enter, from 0.
        data_root: Folder of the slides' images.

    Raises:
        StaleCacheError: Another encoder made the cache; the message states the difference.
        InputError: The encoder has an adapter, or no such block.
        HistError: There is not enough room on the disk.
    """
    common = cache.fingerprint().common
    min_spot_um = CropRule.from_identity(common).min_spot_um
    if different := differences(common, common_identity(encoder, common["precision"], min_spot_um)):
        raise StaleCacheError(f"{cache.folder}: made by another encoder: {'; '.join(different)}")
    if is_tuned(common) or adapted_names(encoder.module):
        raise InputError(
            f"{cache.folder}: tokens are those of an encoder without an adapter; make them before adapting"
        )
    request = Request(HestFolder(data_root, any_scale=True), tuple(sizes), min_spot_um, common)
    tokens = plan_tokens(request, encoder, block, slides, cache.folder)
    announce_tokens(tokens)
    return tokens


def make_tokens(
    cache: Cache,
    slides: Sequence[str],
    sizes: Sequence[int],
    encoder: Encoder,
    block: int,
    data_root: Path,
    device: torch.device | None = None,
) -> list[HistError]:
    """Complete the token files of a cache; arguments and errors are those of `plan_cache_tokens`.

    The encoder runs on `device`, the GPU if there is one by default.

    Returns:
        The errors of slides that failed.
    """
    tokens = plan_cache_tokens(cache, slides, sizes, encoder, block, data_root)
    common = cache.fingerprint().common
    if not tokens.plan.crops:
        return tokens.plan.failed
    encoder_copy = replace(encoder, module=copy.deepcopy(encoder.module))
    with closing(start_pipeline(first_blocks_encoder(encoder_copy, block), common["precision"], device)) as pipeline:
        return compute_tokens(tokens, pipeline, {"device": str(pipeline.device), "weights": encoder.source})
