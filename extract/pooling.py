"""From a crop to one vector: a timm backbone and how its tokens are pooled."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

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
