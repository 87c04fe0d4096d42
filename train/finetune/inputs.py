"""Where fine-tuning starts reading, and the part of the encoder that runs from there.

Either at tokens that were cached where they enter a block, all blocks before it being frozen, or at crops.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from extract.encoders.encoder import Encoder, after, check_block
from extract.encoders.lora import adapted_names
from extract.identity import common_identity
from extract.pipeline import Precision
from extract.slides.batches import Inputs
from extract.tokens import least_spot_um
from hist_cache.cache import Cache
from hist_cache.errors import HistError, InputError, StaleCacheError
from hist_cache.fingerprint import differences
from train.data import SpotData
from train.finetune.crop_inputs import crop_store
from train.finetune.memory import SHARE, Place
from train.finetune.token_inputs import Pair, Store, token_store

AHEAD = 2  # chunks read while one is used

Caches = Cache | Mapping[str, Cache]


class Frontier(Protocol):
    """Inputs of the spots of one SpotData, and what makes embeddings of them."""

    @property
    def description(self) -> str:
        """What is read, where it is kept, how large it is."""

    @property
    def device(self) -> torch.device: ...

    @property
    def resident(self) -> bool:
        """All inputs are in the device's memory."""

    def read(self, rows: Tensor, augment: torch.Generator | None = None) -> Pair:
        """Spot and niche inputs (n, ...) of `rows` (n,) int64, in that order, on the device.

        `rows` are best on the CPU unless `resident`. `augment` draws how each spot's crops are turned and flipped.
        """

    def encode(self, inputs: Tensor) -> Tensor:
        """Embeddings (n, D) float32 of either kind of inputs, with gradients to what is trained of the encoder."""

    def close(self) -> None:
        """Give back memory, files and threads."""


class _Stored:
    """Inputs in a store, and the encoder they are for, which is moved to the store's device."""

    def __init__(self, store: Store, encoder: Encoder, precision: Precision) -> None:
        self.store, self.encoder, self.precision = store, encoder, precision
        encoder.module.to(store.device)

    @property
    def description(self) -> str:
        return self.store.description

    @property
    def device(self) -> torch.device:
        return self.store.device

    @property
    def resident(self) -> bool:
        return self.store.resident

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def close(self) -> None:
        self.store.close()


class TokenFrontier(_Stored):
    """Starts at tokens (T, W) float16 that enter block `block`; runs the blocks from there, adapted or not.

    `cache`: that of all slides, or of each. Tokens are kept in the device's memory, in the host's, or read from the
    disk: in the first of which `share` of what is free holds them all, or in `place`.

    Raises
    ------
    InputError
        The encoder has no such block, or there are no such tokens; says what to do.
    StaleCacheError
        Another encoder made the cache, or the tokens are another image's.
    """

    def __init__(
        self,
        cache: Caches,
        data: SpotData,
        neighbors: int,
        encoder: Encoder,
        block: int,
        device: torch.device,
        precision: Precision,
        *,
        place: Place | None = None,
        share: float = SHARE,
    ) -> None:
        check_block(encoder, block)
        caches = checked(cache, data, encoder)
        super().__init__(token_store(caches, data, neighbors, block, device, place, share), encoder, precision)
        self.block = block

    def read(self, rows: Tensor, augment: torch.Generator | None = None) -> Pair:
        if augment is not None:
            raise InputError(
                "stored tokens are of crops as they lie; to turn and flip crops, train without them (--no-token-cache)"
            )
        return self.store.read(rows)

    def encode(self, inputs: Tensor) -> Tensor:
        module = self.encoder.module
        if passed := adapted_names(module.backbone.blocks[: self.block]):
            first = passed[0].split(".")[0]
            raise HistError(f"block {first} of {self.encoder.name} is adapted, but tokens enter at block {self.block}")
        with self.autocast():
            return after(module, inputs.float(), self.block).float()


class CropFrontier(_Stored):
    """Starts at crops (S, S, 3) uint8, decoded once from the slides; runs the whole encoder.

    `cache`: that of all slides, or of each; where the crops are, and by default the slides. For the other arguments and
    for errors see `train.finetune.crop_inputs.crop_store`; `StaleCacheError` where another encoder made the cache.
    """

    def __init__(
        self,
        cache: Caches,
        data: SpotData,
        neighbors: int,
        encoder: Encoder,
        device: torch.device,
        precision: Precision,
        data_root: Path | None = None,
        *,
        place: Place | None = None,
        share: float = SHARE,
        scratch: Path | None = None,
    ) -> None:
        caches = checked(cache, data, encoder)
        store = crop_store(caches, data, neighbors, encoder, device, data_root, place, share, scratch)
        super().__init__(store, encoder, precision)
        self._inputs = Inputs(encoder, device, torch.float32)

    def read(self, rows: Tensor, augment: torch.Generator | None = None) -> Pair:
        spot, niche = self.store.read(rows)
        if augment is None:
            return spot, niche
        turns = torch.randint(8, (len(rows),), generator=augment)
        return dihedral(spot, turns), dihedral(niche, turns)

    def encode(self, inputs: Tensor) -> Tensor:
        crops = self._inputs.empty(len(inputs))
        self._inputs.fill(inputs, crops)
        with self.autocast():
            return self.encoder.module(crops).float()


def dihedral(crops: Tensor, turns: Tensor) -> Tensor:
    """Each crop by one of the square's 8 symmetries: crops (n, S, S, 3), turns (n,) of 0 (as it is) to 7.

    Bits 0, 1 and 2: transposed, then upside down, then left to right; any of the 8 is one combination of these.
    """
    if crops.device.type == "cuda" and turns.device.type == "cpu":
        turns = turns.pin_memory()
    turns = turns.to(crops.device, non_blocking=True)[:, None, None, None]
    crops = torch.where((turns & 1).bool(), crops.transpose(1, 2), crops)
    crops = torch.where((turns & 2).bool(), crops.flip(1), crops)
    return torch.where((turns & 4).bool(), crops.flip(2), crops)


def checked(cache: Caches, data: SpotData, encoder: Encoder) -> Mapping[str, Cache]:
    """The cache of each slide; `StaleCacheError` unless this encoder (before it was adapted) made them."""
    caches = dict.fromkeys(data.slides, cache) if isinstance(cache, Cache) else cache
    for folder in {caches[slide].folder for slide in data.slides}:
        common = Cache(folder).fingerprint().common
        if different := differences(common, common_identity(encoder, common["precision"], least_spot_um(common))):
            raise StaleCacheError(f"{folder}: made by another encoder: {'; '.join(different)}")
    return caches


def prefetched(frontier: Frontier, chunks: Iterable[Tensor], augment: bool = False) -> Iterator[Pair]:
    """The inputs of each chunk of rows, in order; the next chunks are read by a thread while one is used.

    `augment`: each crop turned and flipped at random, for training; drawn from torch's random state as it is when the
    first is asked for. A reading error is raised where its chunk would come; closed early, what is still to be read is
    dropped.
    """
    # A generator of its own: the thread would share torch's with dropout, in an order that changes from run to run.
    turns = torch.Generator().manual_seed(int(torch.randint(2**62, ()))) if augment else None
    if frontier.resident:
        for rows in chunks:
            yield frontier.read(rows, turns)
        return
    ahead: deque[Future[Pair]] = deque()
    thread = ThreadPoolExecutor(1, "inputs", initializer=_use, initargs=(frontier.device,))
    try:
        for rows in chunks:
            ahead.append(thread.submit(frontier.read, rows, turns))
            if len(ahead) > AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)


def _use(device: torch.device) -> None:
    """Have a thread's pinned memory belong to the process's GPU: a thread starts with the first."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
