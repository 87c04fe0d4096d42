"""An encoder, and its forward pass split between two blocks.

An encoder is a timm backbone whose tokens become one vector per crop. timm runs `patch_embed`, `_pos_embed`,
`patch_drop`, `norm_pre`, the blocks and `norm`. The two parts of a split forward pass run these same steps in the same
order, so together they give exactly what the whole forward pass gives (in float32, to the last bit). The second part,
which may have adapters, is in `extract.encoders.tuned_forward`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from extract.encoders.adapter_slides import AdapterSlides
from hist_cache.errors import InputError
from hist_cache.fingerprint import encoder_slug

Interpolation = Literal["bilinear", "bicubic"]
RGB = tuple[float, float, float]
Pooling = Literal["cls", "cls+mean", "timm"]


class PooledEncoder(nn.Module):
    """A timm model whose tokens become one vector per crop.

    `backbone` is the timm model itself, so that an adapter finds `backbone.blocks.<i>.attn.qkv` and `.proj`.
    Pooling is a method of its own, so that code which runs only some of the blocks can still call it.
    """

    def __init__(self, backbone: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.backbone: Any = backbone  # Any: timm's methods are not on nn.Module
        self.pooling = pooling

    def pool(self, tokens: Tensor) -> Tensor:
        """Make one vector per crop of its normalised tokens.

        Args:
            tokens: (B, T, W) tokens of B crops, after the last norm.

        Returns:
            (B, D) embeddings; D is 2 W for `cls+mean` and W otherwise.
        """
        if self.pooling == "timm":
            pooled: Tensor = self.backbone.forward_head(tokens)
            return pooled
        if self.pooling == "cls":
            return tokens[:, 0]
        # The first tokens are the class token and the registers; registers belong to no place of the image.
        patches = tokens[:, self.backbone.num_prefix_tokens :]
        return torch.cat([tokens[:, 0], patches.mean(1)], dim=-1)

    def forward(self, crops: Tensor) -> Tensor:
        """Embed crops: (B, 3, S, S) normalised float -> (B, D)."""
        return self.pool(self.backbone.forward_features(crops))


@dataclass(frozen=True)
class Encoder:
    """A module that embeds crops, with everything that decides the embeddings it gives."""

    name: str
    """The name that the user gives: `uni`, `timm:vit_small_patch16_224`, `demo`."""
    module: PooledEncoder
    """(B, 3, S, S) normalised float -> (B, D); in evaluation mode, without gradients, on the CPU until it is moved."""
    width: int
    """D: numbers per crop."""
    input_size: int
    """S: side of the input, px."""
    mean: RGB
    """Mean by which pixels are normalised, in 0..1."""
    std: RGB
    """Standard deviation by which pixels are normalised, in 0..1."""
    interpolation: Interpolation
    """How crops are resized to the input size."""
    pretrained: bool
    """Whether the weights come from a file; otherwise they are random."""
    source: str
    """Where the weights came from, for messages: a path, `hub:<repo>` or `random, seed 0`."""
    digest: str
    """SHA-256 of the backbone's tensors, as they were loaded."""
    lora: str | None = None
    """Digest of the adapter that was merged into the weights after loading."""
    adapter_slides: AdapterSlides | None = None
    """The slides that this adapter was trained with; None without one, or where they are unknown."""
    entry: dict[str, Any] | None = None
    """The row of an encoder of the user's own, as far as it decides the embeddings; None for those of this program."""

    @property
    def slug(self) -> str:
        """The name as part of a file name: `timm:vit_small_patch16_224` -> `timm-vit_small_patch16_224`."""
        return encoder_slug(self.name)


def count_blocks(encoder: Encoder) -> int:
    """Count the transformer blocks of an encoder.

    Raises:
        InputError: The encoder is no timm vision transformer.
    """
    return count_vit_blocks(encoder.module.backbone, encoder.name)


def count_vit_blocks(backbone: nn.Module, name: str) -> int:
    """Count the blocks of a timm vision transformer.

    Models that only resemble one (BEiT, EVA, Swin) are refused: they use the weight of `attn.qkv` directly, so that an
    adapter on it would have no effect, or their forward pass has other steps than those that are split here.

    Args:
        backbone: A timm model.
        name: Name of the encoder, for the message.

    Raises:
        InputError: The model is no timm vision transformer.
    """
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(backbone, VisionTransformer) or (
        type(backbone).forward_features is not VisionTransformer.forward_features
    ):
        raise InputError(
            f"encoder {name} is a {type(backbone).__name__}, not a timm VisionTransformer: it has no blocks "
            "to adapt or to cut between; choose a ViT, such as uni or timm:vit_small_patch16_224"
        )
    return len(backbone.blocks)


def check_block(encoder: Encoder, block: int) -> None:
    """Check that the forward pass can be split before a block.

    Args:
        encoder: Any encoder.
        block: Number of the block, from 0; the number of blocks itself means a split after the last one.

    Raises:
        InputError: The encoder has no such block, or no blocks at all.
    """
    blocks = count_blocks(encoder)
    if not 0 <= block <= blocks:
        raise InputError(f"block {block}: encoder {encoder.name} has {blocks} blocks; give one from 0 to {blocks}")


def blocks_before(module: PooledEncoder, crops: Tensor, block: int) -> Tensor:
    """Run everything before block `block`.

    Args:
        module: An encoder's module.
        crops: (B, 3, S, S) normalised crops.
        block: Number of the block, from 0.

    Returns:
        (B, T, W) tokens that enter the block.
    """
    vit = module.backbone
    tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(crops))))
    return vit.blocks[:block](tokens)


class FirstBlocks(PooledEncoder):
    """The first part of an encoder's split forward pass, as a module that shares the encoder's weights."""

    def __init__(self, backbone: nn.Module, block: int) -> None:
        super().__init__(backbone, "cls")
        self.block = block

    def forward(self, crops: Tensor) -> Tensor:
        """Run everything before the block: (B, 3, S, S) normalised crops -> (B, T, W) tokens."""
        return blocks_before(self, crops, self.block)


def first_blocks_encoder(encoder: Encoder, block: int) -> Encoder:
    """Return an encoder that stops before a block, for a pipeline: it gives tokens (B, T, W) in place of embeddings.

    Args:
        encoder: The encoder to split; the weights are shared, not copied.
        block: Number of the block that the tokens enter, from 0.

    Raises:
        InputError: The encoder has no such block.
    """
    check_block(encoder, block)
    backbone = encoder.module.backbone
    return replace(encoder, module=FirstBlocks(backbone, block).eval(), width=backbone.embed_dim)


def token_shape(encoder: Encoder) -> tuple[int, int]:
    """Return (T, W): the number of tokens per crop and of values per token, which are the same at every block.

    The class token and registers count as tokens.

    Raises:
        InputError: The encoder is no timm vision transformer.
    """
    count_blocks(encoder)
    weight = next(encoder.module.parameters())
    with torch.inference_mode():
        crop = torch.zeros((1, 3, encoder.input_size, encoder.input_size), dtype=weight.dtype, device=weight.device)
        tokens = blocks_before(encoder.module, crop, 0)
    return tokens.shape[1], tokens.shape[2]
