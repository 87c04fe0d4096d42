"""The inputs of fine-tuning, read by rows: held on the device or in memory, or in token files on the disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hist_cache.cache import Cache
from hist_cache.console import progress, size
from hist_cache.token_files import Tokens, dataset_names, open_tokens, token_bytes
from train.data import SpotData
from train.finetune.memory import SHARE, Place, choose_place

READERS = 4  # threads: a disk serves several reads at once faster than one after the other
CHUNK = 256  # spots loaded at a time

Pair = tuple[Tensor, Tensor]  # of the spots and of their niches


class Store(Protocol):
    """Spot and niche inputs of all spots of a SpotData, (N, ...) each."""

    device: torch.device
    """Where `read` puts them."""
    resident: bool
    """They are in the device's memory already: reading ahead gains nothing."""
    description: str

    def read(self, rows: Tensor) -> Pair:
        """Inputs of `rows` (n,) int64, in that order, on the device; on another device rows cost a sync."""

    def close(self) -> None: ...


class HeldStore:
    """Inputs in tensors: the device's, the host's, or those of a file that is mapped into memory."""

    def __init__(self, spot: Tensor, niche: Tensor, device: torch.device, description: str, mapped: bool) -> None:
        self.spot, self.niche, self.device, self.description = spot, niche, device, description
        self.resident = spot.device.type == device.type and not mapped

    def read(self, rows: Tensor) -> Pair:
        return self._take(self.spot, rows), self._take(self.niche, rows)

    def _take(self, held: Tensor, rows: Tensor) -> Tensor:
        if held.device.type == self.device.type:
            return held[rows.to(held.device)]
        # What is held is not pinned itself: torch would round tens of gigabytes up to a power of two.
        batch = buffer((len(rows), *held.shape[1:]), held.dtype, self.device)
        torch.index_select(held, 0, rows.cpu(), out=batch)
        return batch.to(self.device, non_blocking=True)

    def close(self) -> None:
        pass


class TokenFiles:
    """Tokens read from the slides' files each time. `slide`, `row` (N,): a spot's file of `tokens`, its row there."""

    resident = False

    def __init__(
        self, tokens: Sequence[Tokens], slide: Tensor, row: Tensor, size: int, device: torch.device, description: str
    ) -> None:
        self.device, self.description = device, description
        self.shape = tokens[0].shape
        self._tokens, self._names = tokens, dataset_names([size])
        self._slide, self._row = slide.cpu().numpy(), row.cpu().numpy()
        self._pool = ThreadPoolExecutor(READERS, "tokens")

    def __len__(self) -> int:
        return len(self._row)

    def read(self, rows: Tensor) -> Pair:
        shape = (len(rows), *self.shape)
        spot, niche = (buffer(shape, torch.float16, self.device) for _ in self._names)
        self.fill(rows, (spot, niche))
        return spot.to(self.device, non_blocking=True), niche.to(self.device, non_blocking=True)

    def fill(self, rows: Tensor, out: Pair) -> None:
        """Read into tensors (n, T, W) float16 on the CPU, in the order of the files."""
        chosen = rows.cpu().numpy()
        slide, row = self._slide[chosen], self._row[chosen]

        def read(i: int) -> None:
            for name, level in zip(self._names, out, strict=True):
                self._tokens[slide[i]].read(name, row[i : i + 1], level[i : i + 1])

        list(self._pool.map(read, np.lexsort((row, slide)).tolist()))

    def close(self) -> None:
        self._pool.shutdown()
        for tokens in self._tokens:
            tokens.close()


def buffer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty batch on the CPU; pinned for a GPU, so that its copy there waits for nothing.

    torch keeps pinned memory and hands it out again once the copy is done.
    """
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


def token_store(
    caches: Mapping[str, Cache],
    data: SpotData,
    neighbors: int,
    block: int,
    device: torch.device,
    place: Place | None = None,
    share: float = SHARE,
) -> HeldStore | TokenFiles:
    """The tokens of all spots of `data`, loaded once where they fit (`place`: there), else read from the disk.

    `caches`: the cache of each slide. Raises what `hist_cache.token_files.open_tokens` does.
    """
    with ExitStack() as opened:
        tokens = [opened.enter_context(open_tokens(caches[s], s, block, [neighbors])) for s in data.slides]
        shape, taken = tokens[0].shape, 2 * token_bytes(len(data.row), tokens[0].shape)
        place = place or choose_place(taken, device, share)
        folders = ", ".join(sorted({str(caches[slide].folder) for slide in data.slides}))
        description = (
            f"tokens entering block {block}: {len(data.row):,} spots and niches of {neighbors} neighbours, "
            f"{shape[0]} x {shape[1]} float16, {size(taken)} "
        )
        where = {"device": "on the GPU", "memory": "in memory", "disk": f"read from {folders}"}[place]
        files = TokenFiles(tokens, data.slide, data.row, neighbors, device, description + where)
        opened.pop_all()
    if place == "disk":
        return files
    try:
        return HeldStore(*_loaded(files, place), device, files.description, mapped=False)
    finally:
        files.close()


def _loaded(files: TokenFiles, place: Place) -> Pair:
    """All tokens of the files, (N, T, W) float16 each."""
    there = files.device if place == "device" else torch.device("cpu")
    shape = (len(files), *files.shape)
    spot, niche = (torch.empty(shape, dtype=torch.float16, device=there) for _ in range(2))
    with progress("tokens", len(files), "spots") as meter:
        for rows in torch.arange(len(files)).split(CHUNK):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            if place == "device":
                spot[part], niche[part] = files.read(rows)
            else:
                files.fill(rows, (spot[part], niche[part]))
            meter.advance(len(rows))
    return spot, niche
