"""Tokens at a block, for fine-tuning that starts there: planned, announced, computed slide after slide.

The same pipeline as for embeddings, with the encoder's part before the block in the encoder's place. A slide's tokens
go to its file as the batches come, so memory stays flat however many there are.
"""

from __future__ import annotations

import copy
import re
import shutil
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

from extract.embeddings import missing_crops, shown
from extract.encoders.encoder import Encoder, check_block, prefix_encoder, token_shape
from extract.encoders.lora import adapted_names
from extract.identity import common_identity
from extract.pipeline import Pipeline, start_pipeline
from extract.plan import Plan, Request, Task, make_plan
from extract.scheduler import Finish, Loaded, do_plan
from extract.slides.crops import SPOT
from hist_cache.cache import Cache
from hist_cache.console import Meter, progress, say, size, warn
from hist_cache.errors import HistError, InputError, SlideError, StaleCacheError
from hist_cache.fingerprint import Fingerprint, differences
from hist_cache.token_files import TokenWriter, dataset_names, token_bytes, written_tokens

LARGEST = 65504  # of float16
PENDING = 2  # batches that may wait for the disk


@dataclass(frozen=True)
class TokenPlan:
    """What tokens are to be computed, and what they take on disk."""

    plan: Plan
    request: Request
    folder: Path
    shape: tuple[int, int]  # (T, W) of a crop

    @property
    def bytes(self) -> int:
        """Bytes that the new tokens take."""
        return token_bytes(self.plan.crops, self.shape)

    @property
    def free_needed(self) -> int:
        """Bytes that must be free: while niches are added to a file, its old tokens are there twice."""
        added_to = [t.path.stat().st_size for t in self.plan.tasks if t.state == "add"]
        return self.bytes + max(added_to, default=0)

    def pipeline(self, encoder: Encoder, like: Pipeline) -> closing[Pipeline]:
        """A pipeline that gives these tokens, on the device and in the precision of another; to be used by `with`."""
        assert self.request.tokens_at is not None
        return closing(start_pipeline(prefix_encoder(encoder, self.request.tokens_at), like.precision, like.device))


def plan_tokens(request: Request, encoder: Encoder, block: int, slides: Sequence[str], folder: Path) -> TokenPlan:
    """What of the slides' tokens at `block` is missing; `InputError` where the encoder has no such block."""
    check_block(encoder, block)
    request = replace(request, tokens_at=block)
    return TokenPlan(make_plan(request, list(slides), folder), request, folder, token_shape(encoder))


def announce(tokens: TokenPlan) -> None:
    """Warn of slides that cannot be used, and say what will be computed and how large it is.

    `HistError` where the disk has no room for it.
    """
    plan, (count, width) = tokens.plan, tokens.shape
    for error in plan.failed:
        warn(str(error))
    complete = sum(task.state == "complete" for task in plan.tasks)
    free = free_bytes(tokens.folder)
    say(
        f"tokens entering block {tokens.request.tokens_at} ({count} x {width} float16 a crop, "
        f"{size(token_bytes(1, tokens.shape))}): {complete} slides complete, {len(plan.tasks) - complete} to do, "
        f"{len(plan.failed)} failed: {plan.crops:,} crops, {size(tokens.bytes)} on disk ({size(free)} free)"
    )
    if tokens.free_needed > free:
        raise HistError(
            f"{tokens.folder}: {size(tokens.free_needed)} needed for tokens, {size(free)} free; make room, give a "
            "--cache on a larger disk, or fine-tune without stored tokens (hist-train --no-token-cache)"
        )


def free_bytes(folder: Path) -> int:
    """Room on the disk that holds a folder, or will hold it."""
    there = next(f for f in (folder, *folder.absolute().parents) if f.exists())
    return shutil.disk_usage(there).free


def compute_tokens(tokens: TokenPlan, pipeline: Pipeline, made: dict[str, Any]) -> list[HistError]:
    """Compute all that is missing, of slides that have embeddings; returns the failures, those of planning included.

    `made`: how, for the provenance.
    """
    tasks = [t for t in tokens.plan.tasks if t.path.with_name(f"{t.files.id}.h5").exists()]
    plan = replace(tokens.plan, tasks=tasks, crops=sum(task.crops for task in tasks))
    with progress("tokens", plan.crops, "crops") as meter:
        produce = partial(stream_slide, tokens.request, pipeline, meter)
        return plan.failed + do_plan(plan, tokens.request, produce, made)


def stream_slide(
    request: Request, pipeline: Pipeline, meter: Meter, task: Task, loaded: Loaded, fingerprint: Fingerprint
) -> Finish:
    """Compute a slide's tokens and write them as they come; nothing is left to do."""
    crops = missing_crops(task, loaded, request)
    names = [dataset_name(c.name) for c in crops]
    attributes = {"slide": task.files.id, "block": request.tokens_at}
    with (
        written_tokens(
            task.path, names, loaded.spots.barcodes, token_shape(pipeline.encoder), fingerprint, attributes
        ) as writer,
        ThreadPoolExecutor(1, "tokens") as thread,
    ):
        outlet = Outlet(task, writer, thread)
        pipeline.stream(loaded.image, loaded.spots.coords, crops, outlet.keep, shown(pipeline, meter))
        outlet.drain(0)
    return lambda: None


def dataset_name(crops: str) -> str:
    """`spot` -> `spot`, `6` -> `niche/6`."""
    return SPOT if crops == SPOT else dataset_names([int(crops)])[1]


class Outlet:
    """Hands tokens to a thread that writes them, so that the encoder goes on; a few batches wait, then it does."""

    def __init__(self, task: Task, writer: TokenWriter, thread: ThreadPoolExecutor) -> None:
        self._task, self._writer, self._thread = task, writer, thread
        self._waiting: deque[Future[None]] = deque()

    def keep(self, name: str, rows: np.ndarray, tokens: Tensor) -> None:
        """tokens (k, T, W) of any float type, on any device."""
        half = tokens.to(torch.float16)
        beyond = (~torch.isfinite(half)).sum()
        self._waiting.append(self._thread.submit(self._write, dataset_name(name), rows, half, beyond, tokens))
        self.drain(PENDING)

    def drain(self, most: int) -> None:
        """Wait until at most that many batches are left; raises what went wrong in the thread."""
        while len(self._waiting) > most:
            self._waiting.popleft().result()

    def _write(self, name: str, rows: np.ndarray, half: Tensor, beyond: Tensor, tokens: Tensor) -> None:
        if count := int(beyond):
            largest = float(tokens.float().abs().nan_to_num(float("inf"), posinf=float("inf")).max())
            raise SlideError(
                self._task.files.id,
                self._task.path,
                f"{count:,} activations of {name} crops entering the block do not fit float16 (up to "
                f"{largest:.6g}; it ends at {LARGEST:,})",
                "fine-tune without stored tokens (hist-train --no-token-cache), or choose another block",
            )
        self._writer.put(name, rows, half.cpu().numpy())


def make_tokens(
    cache: Cache, slides: Sequence[str], sizes: Sequence[int], encoder: Encoder, block: int, data_root: Path
) -> list[HistError]:
    """Complete the token files of a cache's slides, for whoever needs them; returns the failures.

    Parameters
    ----------
    cache, slides, sizes
        Slides of the cache, and the neighbourhood sizes whose niche crops are wanted.
    encoder
        The one that made the cache, without an adapter. It is left as it is: a copy runs in the cache's precision.
    block
        Tokens are those entering this block, counted from 0.
    data_root
        Folder with the slides' images.

    Raises
    ------
    StaleCacheError
        The encoder is not the one that made the cache; the difference is spelled out.
    HistError
        There is no room on the disk.
    """
    common = cache.fingerprint().common
    min_spot_um = least_spot_um(common)
    if different := differences(common, common_identity(encoder, common["precision"], min_spot_um)):
        raise StaleCacheError(f"{cache.folder}: made by another encoder: {'; '.join(different)}")
    if common["lora"] is not None or adapted_names(encoder.module):
        raise InputError(
            f"{cache.folder}: tokens are those of an encoder without an adapter; make them before adapting"
        )
    request = Request(data_root, tuple(sizes), min_spot_um, common)
    tokens = plan_tokens(request, encoder, block, slides, cache.folder)
    announce(tokens)
    if not tokens.plan.crops:
        return tokens.plan.failed
    own = replace(encoder, module=copy.deepcopy(encoder.module))
    with closing(start_pipeline(prefix_encoder(own, block), common["precision"])) as pipeline:
        return compute_tokens(tokens, pipeline, {"device": str(pipeline.device), "weights": encoder.source})


def least_spot_um(common: dict[str, Any]) -> float:
    """The smallest spot crop that a cache's rule allows, um; 0 where it names none."""
    match = re.search(r"at least ([\d.e+-]+)", str(common["spot_crop_um"]))
    return float(match[1]) if match else 0.0
