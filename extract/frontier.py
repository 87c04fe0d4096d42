"""A vision transformer cut between two blocks: what runs before the cut, and what goes on from there.

timm runs `patch_embed`, `_pos_embed`, `patch_drop`, `norm_pre`, the blocks and `norm`. The two halves are these same
steps in the same order, so together they are the whole forward, to the last bit in float32.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from extract.encoders import Encoder
from extract.pooling import PooledEncoder
from hist_cache.errors import InputError


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
