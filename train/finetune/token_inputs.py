"""Cached tokens as inputs: the activations that enter a block, held in memory or read from the slides' token files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from extract.encoders.encoder import Encoder, check_block
from extract.encoders.lora import adapted_names
from extract.encoders.tuned_forward import tuned_forward
from hist_cache.cache import Cache
from hist_cache.console import progress, size
from hist_cache.errors import HistError, InputError
from hist_cache.token_files import Tokens, open_tokens, token_bytes, token_names
from hist_cache.values import Precision
from train.data import SpotData, SpotNiche
from train.finetune.inputs import Caches, HeldStore, StoredInputs, check_caches, host_buffer
from train.finetune.memory import SHARE, Place, choose_place

READERS = 4  # threads: a disk serves several reads at once faster than one after the other
CHUNK = 256  # spots loaded at a time


class TokenFiles:
    """A store of tokens that are read from the slides' files each time.

    Args:
        tokens: The open files.
        slide: `(N,)` each spot's file, by its place in `tokens`.
        row: `(N,)` each spot's row in that file.
        size: Neighbourhood size of the niches.
        device: Where `read` puts them.
        description: What they are, for messages.
    """

    resident = False

    def __init__(
        self, tokens: Sequence[Tokens], slide: Tensor, row: Tensor, size: int, device: torch.device, description: str
    ) -> None:
        self.device, self.description = device, description
        self.shape = tokens[0].shape
        self._tokens, self._names = tokens, token_names([size])
        self._slide, self._row = slide.cpu().numpy(), row.cpu().numpy()
        self._pool = ThreadPoolExecutor(READERS, "tokens")

    def __len__(self) -> int:
        return len(self._row)

    def read(self, rows: Tensor) -> SpotNiche:
        """See `train.finetune.inputs.Store.read`."""
        shape = (len(rows), *self.shape)
        tokens = SpotNiche(*(host_buffer(shape, torch.float16, self.device) for _ in self._names))
        self.fill(rows, tokens)
        return SpotNiche(*(level.to(self.device, non_blocking=True) for level in tokens))

    def fill(self, rows: Tensor, out: SpotNiche) -> None:
        """Read into tensors `(n, T, W)` float16 on the CPU, in the order of the files."""
        chosen = rows.cpu().numpy()
        slide, row = self._slide[chosen], self._row[chosen]

        def read(i: int) -> None:
            for name, level in zip(self._names, out, strict=True):
                self._tokens[slide[i]].read(name, row[i : i + 1], level[i : i + 1])

        list(self._pool.map(read, np.lexsort((row, slide)).tolist()))

    def close(self) -> None:
        """Close the files and end the threads."""
        self._pool.shutdown()
        for tokens in self._tokens:
            tokens.close()


def token_store(
    caches: Mapping[str, Cache],
    data: SpotData,
    neighbors: int,
    block: int,
    device: torch.device,
    place: Place | None = None,
    share: float = SHARE,
) -> HeldStore | TokenFiles:
    """The tokens of all spots of `data`, loaded once where they fit, else read from the disk each time.

    Raises what `hist_cache.token_files.open_tokens` does.

    Args:
        caches: The cache of each slide.
        data: The spots.
        neighbors: Neighbourhood size of the niches.
        block: The block that the tokens enter.
        device: Where they are used.
        place: Where to keep them; default: the nearest place where they fit.
        share: The share of free memory that they may take.
    """
    with ExitStack() as opened:
        tokens = [opened.enter_context(open_tokens(caches[s], s, block, [neighbors])) for s in data.slides]
        shape = tokens[0].shape
        taken = 2 * token_bytes(len(data.row), shape)
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


def _loaded(files: TokenFiles, place: Place) -> SpotNiche:
    """All tokens of the files, `(N, T, W)` float16 each."""
    there = files.device if place == "device" else torch.device("cpu")
    shape = (len(files), *files.shape)
    spot, niche = (torch.empty(shape, dtype=torch.float16, device=there) for _ in range(2))
    with progress("tokens", len(files), "spots") as meter:
        for rows in torch.arange(len(files)).split(CHUNK):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            if place == "device":
                spot[part], niche[part] = files.read(rows)
            else:
                files.fill(rows, SpotNiche(spot[part], niche[part]))
            meter.advance(len(rows))
    return SpotNiche(spot, niche)


class TokenInputs(StoredInputs):
    """Tokens `(T, W)` float16 that enter a block; `encode` runs the blocks from there, adapted or not.

    Tokens are kept in the device's memory, in the host's, or read from the disk: in the first of these where `share` of
    what is free holds them all.

    Args:
        cache: That of all slides, or of each.
        data: The spots.
        neighbors: Neighbourhood size of the niches.
        source: The encoder that made the cache.
        block: The block that the tokens enter, from 0.
        device: Where they are encoded.
        precision: Of the encoder.
        place: Where to keep them; default: the nearest place where they fit.
        share: The share of free memory that they may take.

    Raises:
        InputError: The encoder has no such block, or there are no such tokens; the message says what to do.
        StaleCacheError: Another encoder made the cache, or the tokens are another image's.
    """

    def __init__(
        self,
        cache: Caches,
        data: SpotData,
        neighbors: int,
        source: Encoder,
        block: int,
        device: torch.device,
        precision: Precision,
        *,
        place: Place | None = None,
        share: float = SHARE,
    ) -> None:
        check_block(source, block)
        caches = check_caches(cache, data, source)
        super().__init__(token_store(caches, data, neighbors, block, device, place, share), source, precision)
        self.block = block

    def read(self, rows: Tensor, augment: torch.Generator | None = None) -> SpotNiche:
        """Tokens of `rows`; `InputError` where crops should be turned, which stored tokens cannot be."""
        if augment is not None:
            raise InputError(
                "stored tokens are of crops as they lie; to turn and flip crops, train without them (--no-token-cache)"
            )
        return self.store.read(rows)

    def encode(self, inputs: Tensor) -> Tensor:
        """Tokens `(n, T, W)` to embeddings `(n, D)` float32."""
        module = self.source.module
        if passed := adapted_names(module.backbone.blocks[: self.block]):
            first = passed[0].split(".")[0]
            raise HistError(f"block {first} of {self.source.name} is adapted, but tokens enter at block {self.block}")
        return self.in_parts(inputs, lambda part: tuned_forward(module, part.float(), self.block))
