"""Inputs of an encoder that is fine-tuned: what token and crop inputs share, and where their gigabytes are held."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from extract.encoders.encoder import Encoder, PooledEncoder
from extract.identity import common_identity
from hist_cache.cache import Cache
from hist_cache.errors import StaleCacheError
from hist_cache.fingerprint import CropRule, differences
from hist_cache.values import Precision
from train.data import SpotData, SpotNiche

Caches = Cache | Mapping[str, Cache]
"""The cache of all slides, or of each."""
KEPT_BYTES = 32 << 20  # glibc keeps freed memory of tensors up to this size


class Store(Protocol):
    """Spot and niche inputs of all spots of a `SpotData`, `(N, ...)` each.

    Attributes:
        device: Where `read` puts them.
        resident: They are in the device's memory already, so that reading ahead gains nothing.
        description: What they are, where they are kept, how large they are.
    """

    device: torch.device
    resident: bool
    description: str

    def read(self, rows: Tensor) -> SpotNiche:
        """Inputs of `rows` `(n,)` int64, in that order, on the device; rows elsewhere need a synchronisation."""

    def close(self) -> None:
        """Give back files and threads."""


class HeldStore:
    """Inputs in tensors: the device's, the host's, or those of a file that is mapped into memory."""

    def __init__(self, spot: Tensor, niche: Tensor, device: torch.device, description: str, mapped: bool) -> None:
        self.spot, self.niche, self.device, self.description = spot, niche, device, description
        self.resident = spot.device.type == device.type and not mapped

    def read(self, rows: Tensor) -> SpotNiche:
        """See `Store.read`."""
        return SpotNiche(self._take(self.spot, rows), self._take(self.niche, rows))

    def _take(self, held: Tensor, rows: Tensor) -> Tensor:
        if held.device.type == self.device.type:
            return held[rows.to(held.device)]
        # What is held is not pinned itself: torch would round tens of gigabytes up to a power of two.
        batch = host_buffer((len(rows), *held.shape[1:]), held.dtype, self.device)
        torch.index_select(held, 0, rows.cpu(), out=batch)
        return batch.to(self.device, non_blocking=True)

    def close(self) -> None:
        """Nothing is held besides the tensors."""


def host_buffer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty batch on the CPU; pinned for a GPU, so that its copy there waits for nothing.

    torch keeps pinned memory and hands it out again once the copy is done.
    """
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


def crops_at_once(module: PooledEncoder) -> int:
    """How many crops a CPU takes at a time, so that no activation needs more than `KEPT_BYTES`."""
    vit = module.backbone
    widest = max(layer.out_features for layer in vit.blocks.modules() if isinstance(layer, nn.Linear))
    tokens = vit.patch_embed.num_patches + vit.num_prefix_tokens
    return max(1, KEPT_BYTES // (2 * tokens * widest))


class StoredInputs:
    """Inputs in a store, and the encoder they are for, which is moved to the store's device.

    A subclass says how inputs are read and encoded; with that it is a `train.data.Inputs`.
    """

    def __init__(self, store: Store, source: Encoder, precision: Precision) -> None:
        self.store, self.source, self.precision = store, source, precision
        source.module.to(store.device)

    @property
    def description(self) -> str:
        """What is read, where it is kept, how large it is."""
        return self.store.description

    @property
    def device(self) -> torch.device:
        """Where `read` puts the inputs."""
        return self.store.device

    @property
    def resident(self) -> bool:
        """Whether all inputs are in the device's memory."""
        return self.store.resident

    @property
    def encoder(self) -> PooledEncoder:
        """The encoder, with its adapters where it has any."""
        return self.source.module

    def autocast(self) -> torch.autocast:
        """The encoder's precision, as a context."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def in_parts(self, inputs: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Embeddings `(n, D)` float32 of inputs `(n, ...)`, by a function that encodes some of them.

        A CPU takes a few at a time: the allocator has the system give fresh memory for each large tensor, which costs
        as much as what is done with it. Autocast's copies of weights last for all of the parts.
        """
        parts = -(-len(inputs) // crops_at_once(self.encoder)) if inputs.device.type == "cpu" else 1
        with self.autocast():
            return torch.cat([embed(part).float() for part in inputs.chunk(max(1, parts))])

    def close(self) -> None:
        """Give back memory, files and threads."""
        self.store.close()


def check_caches(cache: Caches, data: SpotData, encoder: Encoder) -> Mapping[str, Cache]:
    """The cache of each slide; `StaleCacheError` unless this encoder (before it was adapted) made them."""
    caches = dict.fromkeys(data.slides, cache) if isinstance(cache, Cache) else cache
    for folder in {caches[slide].folder for slide in data.slides}:
        common = Cache(folder).fingerprint().common
        identity = common_identity(encoder, common["precision"], CropRule.from_identity(common).min_spot_um)
        if different := differences(common, identity):
            raise StaleCacheError(f"{folder}: made by another encoder: {'; '.join(different)}")
    return caches
