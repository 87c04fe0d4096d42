"""An encoder: a timm backbone whose tokens become one vector a crop, and its forward pass split between two blocks.

timm runs `patch_embed`, `_pos_embed`, `patch_drop`, `norm_pre`, the blocks and `norm`. The two parts of a split
are these same steps in the same order, so together they are the whole forward pass, to the last bit in float32.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hist_cache.errors import InputError

Interpolation = Literal["bilinear", "bicubic"]
RGB = tuple[float, float, float]
Pooling = Literal["cls", "cls+mean", "timm"]


class PooledEncoder(nn.Module):
    """A timm model whose tokens become one vector per crop.

    `backbone` is the timm model itself, so that an adapter finds `backbone.blocks.<i>.attn.qkv` and `.proj`.
    Its last two steps are apart: what runs only some blocks can still call `pool`.
    """

    def __init__(self, backbone: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.backbone: Any = backbone  # Any: timm's methods are not on nn.Module
        self.pooling = pooling

    def pool(self, tokens: Tensor) -> Tensor:
        """Make one vector of a crop's normalised tokens, (B, T, W) -> (B, D); D = 2 W for `cls+mean`."""
        if self.pooling == "timm":
            return self.backbone.forward_head(tokens)
        if self.pooling == "cls":
            return tokens[:, 0]
        # The prefix is the class token and the registers; registers hold no place of the image.
        patches = tokens[:, self.backbone.num_prefix_tokens :]
        return torch.cat([tokens[:, 0], patches.mean(1)], dim=-1)

    def forward(self, crops: Tensor) -> Tensor:
        """Embed normalised float crops, (B, 3, S, S) -> (B, D)."""
        return self.pool(self.backbone.forward_features(crops))


@dataclass(frozen=True)
class Encoder:
    """A module that embeds crops, and all that decides what it makes of them."""

    name: str
    """As asked for: `uni`, `timm:vit_small_patch16_224`, `demo`."""
    module: PooledEncoder
    """(B, 3, S, S) normalised float -> (B, D); evaluation mode, no gradients. On the CPU until moved."""
    width: int
    input_size: int
    mean: RGB
    std: RGB
    interpolation: Interpolation
    pretrained: bool
    source: str
    """Where the weights came from, for people: a path, `hub:<repo>` or `random, seed 0`."""
    digest: str
    """SHA-256 of the tensors of the backbone, as loaded."""
    lora: str | None = None
    """Digest of the adapter that was merged into them since."""

    @property
    def slug(self) -> str:
        """The name as part of a file name: `timm:vit_small_patch16_224` -> `timm-vit_small_patch16_224`."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.name)


def count_blocks(encoder: Encoder) -> int:
    """The number of an encoder's blocks; `InputError` where it is no timm vision transformer.

    Models that only resemble one (BEiT, EVA, Swin) are refused: they use `attn.qkv` by its weight and would pass an
    adapter by, or run other steps than those that are cut here.
    """
    from timm.models.vision_transformer import VisionTransformer

    backbone = encoder.module.backbone
    if not isinstance(backbone, VisionTransformer) or (
        type(backbone).forward_features is not VisionTransformer.forward_features
    ):
        raise InputError(
            f"encoder {encoder.name} is a {type(backbone).__name__}, not a timm VisionTransformer: it has no blocks "
            "to adapt or to cut between; choose a ViT, such as uni or timm:vit_small_patch16_224"
        )
    return len(backbone.blocks)


def check_block(encoder: Encoder, block: int) -> None:
    """`InputError` unless the encoder can be cut where activations enter block `block`, counted from 0."""
    blocks = count_blocks(encoder)
    if not 0 <= block <= blocks:
        raise InputError(f"block {block}: encoder {encoder.name} has {blocks} blocks; give one from 0 to {blocks}")


def before(module: PooledEncoder, crops: Tensor, block: int) -> Tensor:
    """All that runs before block `block`: normalised crops (B, 3, S, S) -> tokens (B, T, W) that enter it."""
    vit = module.backbone
    tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(crops))))
    return between(module, tokens, 0, block)


def between(module: PooledEncoder, tokens: Tensor, start: int, stop: int | None = None) -> Tensor:
    """Blocks start..stop-1 (to the last where `stop` is None), (B, T, W) -> (B, T, W)."""
    vit = module.backbone
    blocks = vit.blocks[start:stop]
    if vit.grad_checkpointing and torch.is_grad_enabled() and len(blocks):
        from timm.models import checkpoint_seq

        return checkpoint_seq(blocks, tokens)
    return blocks(tokens)


def after(module: PooledEncoder, tokens: Tensor, block: int) -> Tensor:
    """All that runs from block `block` on: tokens (B, T, W) that enter it -> embeddings (B, D)."""
    return module.pool(module.backbone.norm(between(module, tokens, block)))


class Prefix(PooledEncoder):
    """An encoder's part before a block, as a module of its own that shares its weights: crops -> tokens."""

    def __init__(self, backbone: nn.Module, block: int) -> None:
        super().__init__(backbone, "cls")
        self.block = block

    def forward(self, crops: Tensor) -> Tensor:
        return before(self, crops, self.block)


def prefix_encoder(encoder: Encoder, block: int) -> Encoder:
    """The encoder cut at `block`, for a pipeline: gives tokens (B, T, W) instead of embeddings, in evaluation mode."""
    check_block(encoder, block)
    backbone = encoder.module.backbone
    return replace(encoder, module=Prefix(backbone, block).eval(), width=backbone.embed_dim)


def token_shape(encoder: Encoder) -> tuple[int, int]:
    """(T, W): tokens of a crop (class token and registers included) and numbers of each; the same at every block."""
    count_blocks(encoder)
    some = next(encoder.module.parameters())
    with torch.inference_mode():
        crop = torch.zeros((1, 3, encoder.input_size, encoder.input_size), dtype=some.dtype, device=some.device)
        tokens = before(encoder.module, crop, 0)
    return tokens.shape[1], tokens.shape[2]
