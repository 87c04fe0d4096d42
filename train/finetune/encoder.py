"""Fine-tuning the encoder: LoRA on its last blocks, which read cached tokens or crops (`train.finetune.inputs`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch

from extract.encoders.adapter_slides import AdapterSlides
from extract.encoders.adapters import ADAPTER, save_adapter
from extract.encoders.encoder import Encoder, count_blocks
from extract.encoders.lora import Adapted, LoraConfig, adapt, freeze_in_bf16, remove_adapters
from extract.encoders.registry import count_blocks_of, load_encoder, use_recorded_encoder
from extract.loading import check_plan
from extract.plan import Request, plan_extraction
from extract.tokens import make_tokens, plan_cache_tokens
from hist_cache.cache import Cache
from hist_cache.errors import HistError, InputError
from hist_cache.fingerprint import CropRule, is_tuned
from hist_cache.sources import HestFolder
from hist_cache.token_files import token_blocks
from train import distributed
from train.data import Inputs, SpotData, TensorCache
from train.finetune.crop_inputs import CropInputs
from train.finetune.token_inputs import TokenInputs
from train.fit.config import EncodingConfig

log = logging.getLogger(__name__)

MAX_DEFAULT_LAYERS = 11  # as many as the paper adapts


@dataclass(frozen=True)
class Finetuning:
    """What of the encoder's fine-tuning decides a run's numbers.

    Attributes:
        lora: The adapters.
        start: What the adapted encoder reads: activations cached in float16, or the crops themselves.
        augment: Whether crops are turned and mirrored.
        precision: Of the encoder.
    """

    lora: LoraConfig
    start: Literal["tokens", "crops"]
    augment: bool
    precision: Literal["bf16", "fp32"]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as config.json holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read back what `as_dict` gave."""
        return cls(**(values | {"lora": LoraConfig(**values["lora"])}))


class Finetuner:
    """The encoder of a cache, its inputs, and the adapter of the fold that is being trained.

    Args:
        caches: The cache of each slide; their embeddings were made by the encoder.
        encoder: Without an adapter.
        device: Where it runs.
        data_root: Folder of the slides, as given; by default each cache remembers its own.
        encoding: How the encoder is fed.
        grad_checkpoint: Whether activations are computed twice to save memory.
    """

    def __init__(
        self,
        caches: Mapping[str, Cache],
        encoder: Encoder,
        device: torch.device,
        data_root: str | None,
        encoding: EncodingConfig,
        grad_checkpoint: bool = False,
    ) -> None:
        self.caches, self.device, self.data_root, self.encoding = caches, device, data_root, encoding
        self.grad_checkpoint = grad_checkpoint
        self.encoder = replace(encoder, module=encoder.module.to(device).eval())
        self.blocks = count_blocks(encoder)
        self._inputs: TensorCache[Inputs] = TensorCache(close=lambda inputs: inputs.close())
        self._adapted: Adapted | None = None
        self._summary = ""

    def data(self, data: SpotData, size: int, finetuning: Finetuning) -> SpotData:
        """The same data, with images from where the adapted blocks begin.

        Args:
            data: On cached embeddings.
            size: Neighbourhood size of the niches.
            finetuning: The run's.
        """
        block = self.block_for(data.slides, finetuning.lora.layers) if finetuning.start == "tokens" else None
        key = (tuple(data.slides), len(data.slide), size, block)  # runs on other panels share what is read
        inputs = self._inputs.get(key, lambda: self._open(data, size, block, finetuning))
        return replace(data, encoder_inputs=inputs)

    def _open(self, data: SpotData, size: int, block: int | None, finetuning: Finetuning) -> Inputs:
        inputs: Inputs
        precision = finetuning.precision
        if block is None:
            root = Path(self.data_root) if self.data_root else None
            inputs = CropInputs(self.caches, data, size, self.encoder, self.device, precision, root)
        else:
            inputs = TokenInputs(self.caches, data, size, self.encoder, block, self.device, precision)
        log.info(inputs.description)
        return inputs

    def block_for(self, slides: list[str], layers: int) -> int:
        """The last block with cached tokens that is not behind the first adapted one."""
        if blocks := self._blocks(slides, layers):
            return blocks[-1]
        folders = ", ".join(str(cache.folder) for cache in self._slides_by_cache(slides))
        raise HistError(f"{folders}: no tokens at block {self.blocks - layers} or before")

    def check(self, layers: int) -> None:
        """`InputError` where the encoder has fewer blocks."""
        if layers > self.blocks:
            raise InputError(f"--lora-layers {layers}: {self.encoder.name} has {self.blocks} blocks")

    def start(self, finetuning: Finetuning) -> None:
        """Put fresh adapters, drawn from torch's random state, on the encoder, in place of those of the last fold."""
        if self._adapted is not None:
            remove_adapters(self._adapted)
        self._adapted = adapt(self.encoder, finetuning.lora)
        if finetuning.precision == "bf16":
            freeze_in_bf16(self._adapted)
        if self._summary != self._adapted.summary:
            self._summary = self._adapted.summary
            log.info(self._summary)
        self.encoder.module.backbone.set_grad_checkpointing(self.grad_checkpoint)

    def save(self, folder: Path, slides: AdapterSlides | None) -> None:
        """Write the adapter as peft keeps it, with the slides that it was trained on, into the fold's folder."""
        assert self._adapted is not None
        save_adapter(self._adapted, folder / ADAPTER, slides)

    def provide_tokens(self, sizes: list[int], layers: int) -> None:
        """Make the tokens that adapting `layers` blocks starts from, unless some that serve are there.

        Args:
            sizes: Neighbourhood sizes of the niches.
            layers: Blocks that are adapted at most.
        """
        usable = self._blocks(list(self.caches), layers)
        if distributed.rank() == 0:
            # This also completes what was stopped, or lacks a neighbourhood size.
            block = usable[-1] if usable else self.blocks - layers
            for cache, slides in self._slides_by_cache(list(self.caches)).items():
                data_root = find_data_root(cache, self.data_root)
                failures = make_tokens(cache, slides, sizes, self.encoder, block, data_root, self.device)
                if failures:
                    raise failures[0]
        distributed.barrier()

    def check_slides(self, sizes: list[int], layers: int, from_crops: bool) -> None:
        """Open the files that fine-tuning will open; raises the error of the first slide that cannot be used.

        Args:
            sizes: Neighbourhood sizes of the niches.
            layers: Blocks that are adapted at most.
            from_crops: Whether it starts from the crops, and not from tokens.
        """
        usable = self._blocks(list(self.caches), layers)
        block = usable[-1] if usable else self.blocks - layers
        for cache, slides in self._slides_by_cache(list(self.caches)).items():
            data_root = find_data_root(cache, self.data_root)
            if from_crops:
                common = cache.fingerprint().common
                min_spot_um = CropRule.from_identity(common).min_spot_um
                request = Request(HestFolder(data_root, any_scale=True), tuple(sizes), min_spot_um, common)
                failed = plan_extraction(request, slides, cache.folder).failed
            else:
                tokens = plan_cache_tokens(cache, slides, sizes, self.encoder, block, data_root)
                failed = tokens.plan.failed + check_plan(tokens.plan, tokens.request)
            if failed:
                raise failed[0]

    def _slides_by_cache(self, slides: list[str]) -> dict[Cache, list[str]]:
        caches = dict.fromkeys(self.caches[slide] for slide in slides)
        return {cache: [slide for slide in slides if self.caches[slide] == cache] for cache in caches}

    def _blocks(self, slides: list[str], layers: int) -> list[int]:
        """Blocks, sorted, with cached tokens of all slides, that are not behind the first adapted one."""
        blocks = [set(token_blocks(cache, own)) for cache, own in self._slides_by_cache(slides).items()]
        return sorted(b for b in set.intersection(*blocks) if b <= self.blocks - layers)


def load_cached_encoder(common: dict[str, Any], weights: Path | None) -> Encoder:
    """The encoder that made a cache.

    Args:
        common: The common part of the cache's fingerprint.
        weights: File with its weights, where they are not found by themselves.

    Raises:
        InputError: Its weights are others, or the cache is of an encoder that was fine-tuned already.
    """
    if is_tuned(common):
        raise InputError(
            "this cache holds embeddings of an encoder that is fine-tuned already; give the cache of the plain encoder"
        )
    use_recorded_encoder(common)
    encoder = load_encoder(common["encoder"], weights, random_weights=not common["pretrained"])
    if encoder.digest != common["weights"]:
        raise InputError(
            f"{encoder.source}: not the weights that made the cache ({encoder.digest[:12]} instead of "
            f"{common['weights'][:12]}); give those with --weights"
        )
    return encoder


def default_layers(encoder: str) -> int:
    """Blocks that are adapted where nothing is said of it: the last 11, or all where there are fewer, which is logged.

    Args:
        encoder: Its name.
    """
    blocks = count_blocks_of(encoder)
    if blocks < MAX_DEFAULT_LAYERS:
        log.info(f"--lora-layers {blocks}: {encoder} has {blocks} blocks, so all of them are adapted")
    return min(blocks, MAX_DEFAULT_LAYERS)


def find_data_root(cache: Cache, given: str | None) -> Path:
    """The folder with the slides' images: as given, else as the cache remembers it; `InputError` if it is not there."""
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
