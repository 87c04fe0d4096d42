"""The network of HiST's streams and decoder: residual blocks whose sum stays float32 under autocast."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from extract.encoders.dropout import STEPS, dropped_steps, keep_mask


class Dropout(nn.Module):
    """Inverted dropout whose masks are quickly drawn on a CPU; the result is float32 or wider.

    Args:
        p: Probability of a zero, below 1; on a CPU it is rounded to 1/65536.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Zero some of x and scale the others, while training."""
        if not self.training or not self.p:
            return x
        if x.device.type != "cpu":
            return F.dropout(at_least_float32(x), self.p)
        dropped = dropped_steps(self.p)
        return x * (keep_mask(x, dropped) * (STEPS / (STEPS - dropped)))  # a float32 mask: its scale is exact


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
