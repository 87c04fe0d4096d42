"""Matrix products in bf16, all else in float32 or better; the same bytes each time, also after a stop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.train.fit.test_loop import make_data, make_model
from train.fit.batches import read_batch
from train.fit.config import FitConfig
from train.fit.loop import predict, validation_loss
from train.fit.step import make_optimizer, step

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
WIDE = {  # what must not see a bf16 number
    *(
        "mse_loss",
        "mse_loss_backward",
        "_log_softmax",
        "_log_softmax_backward_data",
        "linalg_vector_norm",
        "exp",
        "log",
    ),
    *("sinh", "asinh", "asin", "acos", "atan2", "log1p", "sqrt", "div", "_fused_adamw_", "_foreach_norm"),
}


class Spy(TorchDispatchMode):
    """Names of the operations that got or made bf16 numbers, those that did not, and casts of each weight."""

    def __init__(self) -> None:
        super().__init__()
        self.bf16: set[str] = set()
        self.others: set[str] = set()
        self.casts: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [v for v in torch.utils._pytree.tree_leaves((args, result)) if isinstance(v, torch.Tensor)]
        (self.bf16 if any(t.dtype == torch.bfloat16 for t in tensors) else self.others).add(name)
        if name == "_to_copy" and result.dtype == torch.bfloat16:
            self.casts.append(args[0].data_ptr())
        return result


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("full", {}),
        ("full", {"gene_network": "shared"}),
        ("euclidean", {"decoder_space": "points"}),
    ],
)
def test_products_are_bf16_and_the_losses_are_not(variant: str, options: dict[str, Any]) -> None:
    data = make_data()
    model = make_model(data, variant, **options)
    model.precision = "bf16"
    weights = {p.data_ptr() for p in model.parameters() if p.ndim == 2}
    optimizer = make_optimizer(model, data.inputs, FitConfig(lr=1e-3))
    for _ in range(2):
        with Spy() as spy:
            log = step(model, data.inputs, optimizer, read_batch(data, torch.arange(32)))
        assert spy.bf16 & PRODUCTS
        assert not spy.bf16 & WIDE
        cast = [pointer for pointer in spy.casts if pointer in weights]
        assert set(cast) == weights  # anew after each update
        assert len(cast) == len(weights)  # and once a step, however often a weight is used
    assert all(value.dtype in (torch.float32, torch.float64) for value in log.values())
    for p in model.parameters():
        assert p.dtype == torch.float32
        assert p.grad is None or p.grad.dtype == torch.float32
    for state in optimizer.state.values():
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32


def test_float32_has_no_bf16_in_it() -> None:
    data = make_data()
    model = make_model(data)
    with Spy() as spy:
        step(model, data.inputs, make_optimizer(model, data.inputs, FitConfig()), read_batch(data, torch.arange(32)))
        predict(model, data, torch.arange(96))
    assert not spy.bf16
    assert spy.others & PRODUCTS


def test_predictions_and_the_validation_loss_have_the_precision_too() -> None:
    data = make_data()
    model = make_model(data)
    rows = data.rows(("B",))
    before = predict(model, data, rows), validation_loss(model, data, rows, 16)
    model.precision = "bf16"
    after = predict(model, data, rows), validation_loss(model, data, rows, 16)
    assert after[0].dtype == torch.float32
    assert not torch.equal(before[0], after[0])
    torch.testing.assert_close(after[0], before[0], rtol=0.05, atol=0.05)
    assert before[1] != after[1]
    assert after[1] == pytest.approx(before[1], rel=0.05)
