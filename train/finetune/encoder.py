"""Fine-tuning the encoder: LoRA on its last blocks, which read cached tokens or crops (`train.finetune.inputs`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from extract.encoders.adapters import ADAPTER, save_adapter
from extract.encoders.encoder import Encoder, count_blocks
from extract.encoders.lora import Adapted, LoraConfig, adapt, hasten, remove
from extract.encoders.registry import load_encoder
from extract.pipeline import has_fast_bf16
from extract.tokens import make_tokens
from hist_cache.cache import Cache
from hist_cache.console import say
from hist_cache.errors import HistError, InputError
from hist_cache.token_files import token_blocks
from train import distributed
from train.data import SpotData
from train.finetune.inputs import CropFrontier, Frontier, TokenFrontier
from train.fit.loop import Reading


@dataclass(frozen=True)
class Finetuning:
    """What of the encoder's tuning decides a run's numbers."""

    lora: LoraConfig
    start: Literal["tokens", "crops"]
    """What the adapted encoder reads: activations cached in float16, or the crops themselves."""
    augment: bool
    precision: Literal["bf16", "fp32"]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class TunedEncoder(nn.Module):
    """An adapted encoder as a part of the model: its adapters are trained with it."""

    def __init__(self, adapted: Adapted, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module = adapted.encoder.module
        self._encode = encode

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, ...) tokens or crops to (B, D) float32 embeddings."""
        return self._encode(inputs)


class Finetuner:
    """The encoder of a cache, its frontier, and the adapter of the fold that is being trained."""

    def __init__(
        self,
        cache: Cache,
        encoder: Encoder,
        device: torch.device,
        data_root: Path,
        reading: Reading,
        grad_checkpoint: bool = False,
    ) -> None:
        self.cache, self.device, self.data_root, self.reading = cache, device, data_root, reading
        self.grad_checkpoint = grad_checkpoint
        self.encoder = replace(encoder, module=encoder.module.to(device).eval())
        self.blocks = count_blocks(encoder)
        self._frontiers: dict[Any, Frontier] = {}
        self._adapted: Adapted | None = None
        self._said = ""

    def data(self, data: SpotData, size: int, tuning: Finetuning) -> SpotData:
        """The same data, with images from where the tuned blocks begin."""
        block = self.block_for(data.slides, tuning.lora.layers) if tuning.start == "tokens" else None
        key = (tuple(data.slides), len(data.slide), size, block)  # panels share what is read
        if key not in self._frontiers:
            for frontier in self._frontiers.values():
                frontier.close()
            self._frontiers.clear()  # the last one's memory, before the next one's is taken
            self._frontiers[key] = self._open(data, size, block, tuning)
            say(self._frontiers[key].description)
        return replace(data, frontier=self._frontiers[key])

    def _open(self, data: SpotData, size: int, block: int | None, tuning: Finetuning) -> Frontier:
        if block is None:
            return CropFrontier(self.cache, data, size, self.encoder, self.device, tuning.precision, self.data_root)
        return TokenFrontier(self.cache, data, size, self.encoder, block, self.device, tuning.precision)

    def block_for(self, slides: list[str], layers: int) -> int:
        """The last block with cached tokens that is not behind the first adapted one."""
        found = [b for b in token_blocks(self.cache, slides) if b <= self.blocks - layers]
        if not found:
            raise HistError(f"{self.cache.folder}: no tokens at block {self.blocks - layers} or before")
        return found[-1]

    def check(self, layers: int) -> None:
        """`InputError` where the encoder has fewer blocks."""
        if layers > self.blocks:
            raise InputError(f"--lora-layers {layers}: {self.encoder.name} has {self.blocks} blocks")

    def start(self, tuning: Finetuning, frontier: Frontier) -> nn.Module:
        """Fresh adapters, drawn from torch's random state, on the encoder; the part of the model that reads images."""
        if self._adapted is not None:
            remove(self._adapted)
        self._adapted = adapt(self.encoder, tuning.lora)
        hasten(self._adapted)
        if self._said != self._adapted.summary:
            self._said = self._adapted.summary
            say(self._said)
        self.encoder.module.backbone.set_grad_checkpointing(self.grad_checkpoint)
        return TunedEncoder(self._adapted, frontier.encode)

    def save(self, folder: Path) -> None:
        """The adapter as peft keeps it, in the fold's folder."""
        assert self._adapted is not None
        save_adapter(self._adapted, folder / ADAPTER)


def encoder_of(common: dict[str, Any], weights: Path | None) -> Encoder:
    """The encoder that made a cache; `InputError` where its weights are others."""
    if common["lora"] is not None:
        raise InputError(
            "this cache holds embeddings of an encoder that is tuned already; give the cache of the plain encoder"
        )
    encoder = load_encoder(common["encoder"], weights, random_weights=not common["pretrained"])
    if encoder.digest != common["weights"]:
        raise InputError(
            f"{encoder.source}: not the weights that made the cache ({encoder.digest[:12]} instead of "
            f"{common['weights'][:12]}); give those with --weights"
        )
    return encoder


def default_precision() -> Literal["bf16", "fp32"]:
    """Of the encoder's products: bf16 where that is fast."""
    return "bf16" if has_fast_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu")) else "fp32"


def provide_tokens(tuner: Finetuner, slides: list[str], sizes: list[int], layers: int, data_root: Path) -> None:
    """Make the tokens that adapting `layers` blocks starts from, unless some that serve are there."""
    block = tuner.blocks - layers
    usable = [b for b in token_blocks(tuner.cache, slides) if b <= block]
    if distributed.rank() == 0:
        # Also completes what was stopped, or lacks a neighbourhood size.
        failed = make_tokens(tuner.cache, slides, sizes, tuner.encoder, usable[-1] if usable else block, data_root)
        if failed:
            raise failed[0]
    distributed.barrier()


def where_slides_are(cache: Cache, given: str | None) -> Path:
    """The folder with the slides' images: as given, else as the cache remembers it."""
    if given and not Path(given).is_dir():
        raise InputError(f"--data-root {given}: no such folder")
    if given:
        return Path(given)
    remembered = cache.fingerprint().provenance.get("data_root")
    if not remembered or not Path(remembered).is_dir():
        raise InputError(
            f"{cache.folder}: made from slides in {remembered or 'an unknown folder'}, which is not there; "
            "give --data-root"
        )
    return Path(remembered)
