"""The network of HiST's streams and decoder: residual blocks whose sum stays float32 under autocast.

Networks of the same shape run together, each layer of all of them as one batched product: a step of a small model
spends more time on calling operations than on computing them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from extract.encoders.dropout import STEPS, dropped_steps, keep_mask
from train.models.numerics import at_least_float32


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


class Stream(nn.Module):
    """One input, such as spot embeddings, to its representation: Linear, then a residual MLP."""

    def __init__(self, inputs: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, width)
        self.encode = ResidualMLP(width, width, depth, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, inputs)` to `(B, width)`."""
        return self.encode(self.enter(x))


def encode(streams: Sequence[Stream], inputs: Sequence[Tensor]) -> Tensor:
    """What k streams of the same width and depth make of their inputs, `(B, n)` each: `(k, B, width)`."""
    entered = [stream.enter(x) for stream, x in zip(streams, inputs, strict=True)]
    return run_together([stream.encode for stream in streams], torch.stack(entered))


class _Linear(torch.autograd.Function):
    """Of `batched_linear`: weights are converted as they are copied, and gradients as they are given back."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, x: Tensor, *parameters: Tensor) -> Tensor:
        k = len(x)
        weight, bias = (stack(parameters[i * k : (i + 1) * k], dtype) for i in range(2))
        x_own = x.to(dtype)
        ctx.save_for_backward(x_own, weight)
        ctx.types = x.dtype, parameters[0].dtype
        return torch.baddbmm(bias.unsqueeze(1), x_own, weight.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_parameters = ctx.types
        of_weight, of_bias = gradient.mT @ x, gradient.sum(1)
        grads = [own.to(of_parameters) for grad in (of_weight, of_bias) for own in grad]
        return (None, (gradient @ weight).to(of_x), *grads)


def batched_linear(dtype: torch.dtype, x: Tensor, *parameters: Tensor) -> Tensor:
    """Several linear layers at once, whose product is in a type of its own.

    Args:
        dtype: Of the product and of the result.
        x: `(k, B, inputs)`.
        parameters: The k weights `(outputs, inputs)`, then the k biases `(outputs,)`.

    Returns:
        `(k, B, outputs)`.
    """
    result: Tensor = _Linear.apply(dtype, x, *parameters)
    return result


def stack(parameters: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Tensors of the same shape as one, `(k, ...)`, converted as they are copied."""
    stacked = parameters[0].new_empty((len(parameters), *parameters[0].shape), dtype=dtype)
    for own, parameter in zip(stacked, parameters, strict=True):
        own.copy_(parameter)
    return stacked


def run_together(networks: Sequence[ResidualMLP], x: Tensor) -> Tensor:
    """What each of k networks of the same shape makes of its input.

    Args:
        networks: Their blocks and widths are the same.
        x: `(k, B, inputs)`.

    Returns:
        `(k, B, width)`, float32 or wider.
    """
    if len(networks) == 1:
        return networks[0](x[0]).unsqueeze(0)
    x = at_least_float32(x)
    kind = x.device.type
    product = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype

    def linear(layers: Sequence[Any], x: Tensor) -> Tensor:
        return batched_linear(product, x, *(layer.weight for layer in layers), *(layer.bias for layer in layers))

    def norm(layers: Sequence[Any], x: Tensor) -> Tensor:
        weight, bias = (
            torch.stack([getattr(layer, name) for layer in layers]).unsqueeze(1) for name in ("weight", "bias")
        )
        return torch.addcmul(bias, F.layer_norm(x, x.shape[-1:], eps=layers[0].eps), weight)

    with torch.autocast(kind, enabled=False):
        norms, layers = zip(*(network.enter for network in networks), strict=True)
        x = at_least_float32(linear(layers, norm(norms, x)))
        for blocks in zip(*(network.blocks for network in networks), strict=True):
            norms, widening, _, narrowing, dropouts = zip(*blocks, strict=True)
            branch = linear(narrowing, F.gelu(linear(widening, norm(norms, x))))
            x = x + dropouts[0](branch)
        return norm([network.leave for network in networks], x)
