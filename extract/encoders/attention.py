"""Self-attention whose gradient is fast on a CPU.

torch's fused attention takes long for its gradient there, and the plain one moves all scores through memory several
times. Here one crop is computed after the other, so that its scores stay in the CPU's cache. They are computed again
for the gradient instead of being stored.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def attend(qkv: Tensor) -> Tensor:
    """Self-attention of tokens with each other.

    Args:
        qkv: (B, T, 3, H, d) queries, keys and values of B crops.

    Returns:
        (B, T, H d).
    """
    if qkv.device.type != "cpu":
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    result: Tensor = CropByCrop.apply(qkv)
    return result.flatten(2)


def attend_from_first(q: Tensor, kv: Tensor) -> Tensor:
    """What the first token alone gets from attending to all.

    Args:
        q: (B, 1, H, d) its queries.
        kv: (B, T, 2, H, d) keys and values of all tokens.

    Returns:
        (B, 1, H d).
    """
    k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
    scores = (q.transpose(1, 2) * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    weights = scores.softmax(-1).to(v.dtype)
    return (weights @ v).transpose(1, 2).flatten(2)


class CropByCrop(torch.autograd.Function):
    """`attend` on a CPU: (B, T, 3, H, d) -> (B, T, H, d).

    Products are in the type of the input, as in torch's plain attention. Softmax and its gradient sum up in float32.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor) -> Tensor:
        """Attention of each crop."""
        ctx.save_for_backward(qkv)
        out = qkv.new_empty(qkv.shape[:2] + qkv.shape[3:])
        with torch.autocast(qkv.device.type, enabled=False):
            for crop, to in zip(qkv, out, strict=True):
                q, k, v = crop.permute(1, 2, 0, 3).contiguous()
                weights = attention_weights(q, k)
                to.copy_((weights @ v).transpose(0, 1))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The gradient of queries, keys and values."""
        (qkv,) = ctx.saved_tensors
        out = torch.empty_like(qkv)
        scale = qkv.shape[-1] ** -0.5
        with torch.autocast(qkv.device.type, enabled=False):
            for crop, back, to in zip(qkv, gradient, out, strict=True):
                q, k, v = crop.permute(1, 2, 0, 3).contiguous()
                back = back.transpose(0, 1).contiguous()
                weights = attention_weights(q, k)
                of_scores = torch._softmax_backward_data(back @ v.transpose(1, 2), weights, -1, weights.dtype)
                to[:, 0] = (of_scores @ k).mul_(scale).transpose(0, 1)
                to[:, 1] = (of_scores.transpose(1, 2) @ q).mul_(scale).transpose(0, 1)
                to[:, 2] = (weights.transpose(1, 2) @ back).transpose(0, 1)
        return out


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """Softmax over keys of the scaled products of queries and keys, (H, T, d) each -> (H, T, T)."""
    return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(1, 2), -1)
