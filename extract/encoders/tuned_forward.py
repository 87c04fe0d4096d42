"""The second part of an encoder's forward pass, written so that training adapters takes less time.

Blocks without an adapter run as they are. Adapted ones give what timm's and peft's modules give, but

- where the embedding is the class token, the last block computes only keys and values for the other tokens;
- on a CPU, dropout before the adapters takes 16 random bits an element: torch's own takes several times as long there;
- attention is that of `extract.encoders.attention`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from extract.encoders.attention import attend, attend_from_first
from extract.encoders.dropout import STEPS, dropped_steps, keep_mask
from extract.encoders.encoder import PooledEncoder

ADAPTER_KEY = "default"  # peft's name of an only adapter


def first_adapted(module: PooledEncoder) -> int:
    """Number of the first adapted block, from 0; the number of blocks where none is."""
    from peft.tuners.lora import LoraLayer

    blocks = module.backbone.blocks
    return next(
        (i for i, block in enumerate(blocks) if any(isinstance(m, LoraLayer) for m in block.modules())), len(blocks)
    )


def tuned_forward(module: PooledEncoder, tokens: Tensor, start: int) -> Tensor:
    """Run everything from a block on, after `extract.encoders.encoder.blocks_before`.

    Args:
        module: An encoder's module, with adapters or without.
        tokens: (B, T, W) tokens that enter the block.
        start: Number of the block, from 0.

    Returns:
        (B, D) embeddings.
    """
    vit = module.backbone
    blocks = vit.blocks[start:]
    for i, block in enumerate(blocks):
        first_only = i == len(blocks) - 1 and _reads_first_only(module)
        run = partial(tuned_block, block, first_only=first_only) if _is_plain(block) else block
        if vit.grad_checkpointing and torch.is_grad_enabled():
            tokens = checkpoint(run, tokens, use_reentrant=False)
        else:
            tokens = run(tokens)
    return module.pool(vit.norm(tokens))


def _reads_first_only(module: PooledEncoder) -> bool:
    """Whether the embedding is made of the first token alone."""
    vit = module.backbone
    by_timm = module.pooling == "timm" and vit.global_pool == "token" and vit.attn_pool is None
    return module.pooling == "cls" or by_timm


def _is_plain(block: nn.Module) -> bool:
    """Whether it is timm's usual block, adapted, whose attention has no steps besides the usual ones."""
    from peft.tuners.lora import Linear
    from timm.models.vision_transformer import Attention, Block  # type: ignore[attr-defined]

    if type(block) is not Block or type(block.attn) is not Attention:
        return False
    attention = block.attn
    unused = (attention.q_norm, attention.k_norm, getattr(attention, "norm", nn.Identity()))
    return (
        isinstance(attention.qkv, Linear)
        and isinstance(attention.proj, Linear)
        and all(isinstance(part, nn.Identity) for part in unused)
        and getattr(attention, "gate", None) is None
        and attention.attn_drop.p == 0
    )


def tuned_block(block: Any, tokens: Tensor, first_only: bool) -> Tensor:
    """One block of the usual kind.

    Args:
        block: timm's, its attention adapted.
        tokens: (B, T, W).
        first_only: Give the first token only.

    Returns:
        (B, T, W), or (B, 1, W).
    """
    attention = _attention_from_first if first_only else _attention
    mixed = attention(block.attn, _in_precision(block.norm1(tokens)))
    tokens = tokens[:, :1] if first_only else tokens
    tokens = tokens + block.drop_path1(block.ls1(mixed))
    return tokens + block.drop_path2(block.ls2(block.mlp(_in_precision(block.norm2(tokens)))))


def _in_precision(values: Tensor) -> Tensor:
    """In autocast's type, converted once for all that read it."""
    device = values.device.type
    return values.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else values


def _attention(attention: Any, x: Tensor) -> Tensor:
    qkv = adapted_linear(attention.qkv, x, low_rank(attention.qkv, x))
    mixed = attend(qkv.unflatten(-1, (3, attention.num_heads, -1)))
    return _project(attention, mixed)


def _attention_from_first(attention: Any, x: Tensor) -> Tensor:
    low = low_rank(attention.qkv, x)
    width = attention.qkv.out_features // 3
    q = adapted_linear(attention.qkv, x[:, :1], low[:, :1], slice(0, width))
    kv = adapted_linear(attention.qkv, x, low, slice(width, None))
    heads = attention.num_heads
    return _project(attention, attend_from_first(q.unflatten(-1, (heads, -1)), kv.unflatten(-1, (2, heads, -1))))


def _project(attention: Any, mixed: Tensor) -> Tensor:
    return attention.proj_drop(adapted_linear(attention.proj, mixed, low_rank(attention.proj, mixed)))


def low_rank(layer: Any, x: Tensor) -> Tensor:
    """The inputs, in training after dropout, times an adapter's first factor: (B, T, W) -> (B, T, rank)."""
    dropout, factor = layer.lora_dropout[ADAPTER_KEY], layer.lora_A[ADAPTER_KEY].weight
    if not (dropout.training and isinstance(dropout, nn.Dropout)):
        return F.linear(x, factor)
    if x.device.type != "cpu":
        return F.linear(F.dropout(x, dropout.p), factor)
    dropped = dropped_steps(dropout.p)
    return F.linear(x * keep_mask(x, dropped).to(x.dtype), factor) * (STEPS / (STEPS - dropped))


def adapted_linear(layer: Any, x: Tensor, low: Tensor, rows: slice = slice(None)) -> Tensor:
    """An adapted linear layer.

    Args:
        layer: peft's.
        x: (B, T, W).
        low: Of `low_rank` for these tokens.
        rows: Rows of the weights, for a part of the outputs.
    """
    base, factor = layer.base_layer, layer.lora_B[ADAPTER_KEY].weight
    # On matrices: adding in place to a view would have autograd copy the whole gradient.
    out = F.linear(x.flatten(0, 1), base.weight[rows], None if base.bias is None else base.bias[rows])
    out.addmm_(low.flatten(0, 1), factor[rows].to(out.dtype).t(), alpha=layer.scaling[ADAPTER_KEY])
    return out.unflatten(0, x.shape[:2])
