"""Blocks of a transformer with LayerNorm before each part, whose sum stays float32 under autocast.

Attention is `scaled_dot_product_attention` without dropout of its weights: its kernels then hold no table of all pairs,
so that memory grows with the number of tokens alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.streams import Dropout


def multi_head_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """What n queries take from m tokens.

    Args:
        query: `(B, n, d)`.
        key: `(B, m, d)`.
        value: `(B, m, d)`.
        heads: They divide d.
        bias: What is added to the logits, and broadcasts to `(B, heads, n, m)`; -inf hides a token.

    Returns:
        `(B, n, d)`.
    """
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    taken = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
    return taken.transpose(1, 2).flatten(2)


class FeedForwardBlock(nn.Module):
    """x + FFN(LN x), where FFN has one hidden layer."""

    def __init__(self, width: int, ratio: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, ratio * width),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(ratio * width, width),
            Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(..., width)` to the same shape, float32."""
        return x + self.layers(x)


class SelfAttentionBlock(nn.Module):
    """x + attention(LN x), then a feed-forward block."""

    def __init__(self, width: int, heads: int, ratio: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width)
        self.feed_forward = FeedForwardBlock(width, ratio, dropout)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Tokens `(B, n, width)` to the same shape, float32; `bias` is that of `multi_head_attention`."""
        query, key, value = self.to_qkv(self.norm(x)).chunk(3, dim=2)
        taken = multi_head_attention(query, key, value, self.heads, bias)
        return self.feed_forward(x + self.mix(taken))


class CrossAttentionBlock(nn.Module):
    """q + attention of LN q to LN tokens, with the same LN, then a feed-forward block."""

    def __init__(self, width: int, heads: int, ratio: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key_value = nn.Linear(width, 2 * width, bias=False)
        self.mix = nn.Linear(width, width)
        self.feed_forward = FeedForwardBlock(width, ratio, dropout)

    def forward(self, query: Tensor, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """Queries `(B, n, width)` to the same shape, float32, from tokens `(B, m, width)`."""
        key, value = self.to_key_value(self.norm(tokens)).chunk(2, dim=2)
        taken = multi_head_attention(self.to_query(self.norm(query)), key, value, self.heads, bias)
        return self.feed_forward(query + self.mix(taken))


class PositionGenerator(nn.Module):
    """x + a depthwise convolution over the lattice: a weight for each channel and each place of ring 1 and the spot.

    The weights are drawn as those of a convolution over 3 x 3 cells.

    Args:
        places: Of ring 1, at most.
        width: Channels.
    """

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        bound = (places + 1) ** -0.5
        self.around = nn.Parameter(torch.empty(places, width))
        self.own = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
        for parameter in (self.around, self.own, self.bias):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, ring: Tensor) -> Tensor:
        """Tokens `(n, width)` with their positions.

        Args:
            x: `(n, width)`.
            ring: `(n, K)` int64 tokens of ring 1 in fixed places, n where there is none; K is `places` at most.
        """
        padded = F.pad(x, (0, 0, 0, 1))  # a token of zeros stands for those that are not there
        total = x + self.own * x + self.bias
        for weight, neighbor in zip(self.around[: ring.shape[1]].unbind(), ring.unbind(1), strict=True):
            total = total + weight * F.embedding(neighbor, padded)
        return total
