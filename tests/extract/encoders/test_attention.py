"""Attention and its gradient against the formula in float64, with torch's own gradient."""

import pytest
import torch
from torch import Tensor

from extract.encoders.attention import attend, attend_from_first


def formula(qkv: Tensor) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.transpose(-2, -1) / qkv.shape[-1] ** 0.5, -1)
    return (weights @ v).transpose(1, 2).flatten(2)


def outcome(function: object, qkv: Tensor) -> tuple[Tensor, Tensor]:
    qkv = qkv.clone().requires_grad_()
    out = function(qkv)  # type: ignore[operator]
    gradient = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return out.detach().double(), torch.autograd.grad(out, qkv, gradient)[0].double()


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("autocast", [False, True])
def test_attention_and_its_gradient(dtype: torch.dtype, error: float, autocast: bool) -> None:
    qkv = torch.randn(3, 11, 3, 2, 8, generator=torch.Generator().manual_seed(0)).to(dtype).double()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = outcome(attend, qkv.to(dtype))
        first = outcome(lambda x: attend_from_first(x[:, :1, 0], x[:, :, 1:]), qkv.to(dtype))
    for mine, exact in zip(found, outcome(formula, qkv), strict=True):
        assert (mine - exact).norm() < error * exact.norm()
    if autocast and dtype != torch.bfloat16:
        return  # this one's products are autocast's
    for mine, exact in zip(first, outcome(lambda x: formula(x)[:, :1], qkv), strict=True):
        assert (mine - exact).norm() < error * exact.norm()
