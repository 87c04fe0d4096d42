"""AdamW is that of torch, bit for bit, and either goes on with the state of the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from train.fit.adamw import AdamW

NOTHING = torch.tensor(0.0)


def parameters() -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=g)) for shape in ((3, 4), (5,), (), (2, 2))]


def groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.0}]


def draw_gradients(params: list[nn.Parameter], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for p in params[:-1]:  # the last one has none
        p.grad = torch.randn(p.shape, generator=g)


def by_torch(params: list[nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups(params), lr=1e-2, weight_decay=0.1, fused=True)


def torch_step(optimizer: torch.optim.AdamW, scale: Tensor | None, skip: Tensor) -> None:
    optimizer.grad_scale = scale  # type: ignore[attr-defined]
    optimizer.found_inf = skip  # type: ignore[attr-defined]
    optimizer.step()


def assert_same(a: list[nn.Parameter], b: list[nn.Parameter]) -> None:
    for p, q in zip(a, b, strict=True):
        assert torch.equal(p, q)
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or q.grad is None or torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("exchanged", [False, True])
def test_steps_are_those_of_torch(exchanged: bool) -> None:
    own, theirs = parameters(), parameters()
    ours, expected = AdamW(groups(own), 1e-2, 0.1), by_torch(theirs)
    for i, (scale, skip) in enumerate([(None, 0.0), (torch.tensor(3.0), 0.0), (None, 1.0), (None, 0.0)]):
        draw_gradients(own, i)
        draw_gradients(theirs, i)
        ours.step(scale, torch.tensor(skip))
        torch_step(expected, scale, torch.tensor(skip))
        assert_same(own, theirs)
        if exchanged:
            state, other = ours.state_dict(), expected.state_dict()
            defaults = by_torch(theirs).state_dict()["param_groups"]
            state["param_groups"] = [d | g for d, g in zip(defaults, state["param_groups"], strict=True)]
            ours, expected = AdamW(groups(own), 1.0, 1.0), by_torch(theirs)
            ours.load_state_dict(other)
            expected.load_state_dict(state)


def test_a_skipped_step_changes_nothing_and_does_not_count() -> None:
    own = parameters()
    optimizer = AdamW(groups(own), 1e-2, 0.1)
    draw_gradients(own, 0)
    before = [p.detach().clone() for p in own]
    optimizer.step(None, torch.tensor(1.0))
    assert all(torch.equal(p, q) for p, q in zip(own, before, strict=True))
    assert all(state["step"] == 0 for state in optimizer.state.values())
    optimizer.zero_grad()
    assert all(p.grad is None for p in own)


@pytest.mark.parametrize("damage", ["fewer", "shape", "number"])
def test_state_of_other_parameters_is_refused(damage: str) -> None:
    own = parameters()
    optimizer = AdamW(groups(own), 1e-2, 0.1)
    draw_gradients(own, 0)
    optimizer.step(None, NOTHING)
    stored = optimizer.state_dict()
    if damage == "fewer":
        stored["param_groups"][0]["params"].pop()
    elif damage == "shape":
        stored["state"][0] = stored["state"][1]
    else:
        stored["state"][7] = stored["state"][1]
    with pytest.raises((ValueError, IndexError)):
        AdamW(groups(parameters()), 1e-2, 0.1).load_state_dict(stored)
