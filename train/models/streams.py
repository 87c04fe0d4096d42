"""The network of HiST's streams and decoder: residual blocks whose sum stays float32 under autocast."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MASK_BITS = 16
"""A dropout mask compares so many random bits with its probability, which is exact to 1/65536."""


class Dropout(nn.Module):
    """Inverted dropout whose mask costs a quarter of a random number an element, several times less than torch's.

    Args:
        p: Probability of a zero, below 1, rounded to 1/65536.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.zeros = min(round(p * 2**MASK_BITS), 2**MASK_BITS - 1)  # of the values of 16 bits, those that give a zero

    def forward(self, x: Tensor) -> Tensor:
        """Zero some of x and scale the others, while training."""
        if not self.training or not self.zeros:
            return x
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = bits.view(torch.int16)[: x.numel()].view_as(x) >= self.zeros - 2 ** (MASK_BITS - 1)
        return x * (kept * (2**MASK_BITS / (2**MASK_BITS - self.zeros)))  # a float32 mask: the product is one too


class ResidualMLP(nn.Module):
    """LN, Linear, `depth` times [x + MLP(LN x)] with ratio 2, LN: `(B, inputs)` to `(B, width)`."""

    def __init__(self, inputs: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, width))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                nn.GELU(),
                nn.Linear(2 * width, width),
                Dropout(dropout),  # one a block
            )
            for _ in range(depth)
        )
        self.leave = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, inputs)` to `(B, width)`, float32 or wider."""
        x = at_least_float32(self.enter(at_least_float32(x)))
        for block in self.blocks:
            x = x + block(x)
        return self.leave(x)


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor, in float32 where it has fewer bits."""
    return x.float() if x.itemsize < 4 else x
