"""Matrix products in bf16, all else in float32 or better; the same bytes each time, also after a stop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.train.fit.test_loop import make_data, make_model
from tests.train.report.fake_runs import SETTING
from train.data import SpotNiche
from train.experiments.outputs import make_model as setting_model
from train.fit.batches import read_batch
from train.fit.config import FitConfig
from train.fit.loop import predict, validation_loss
from train.fit.step import make_optimizer, step
from train.models.alignment import contrast_loss, entailment_loss, geometry_summary
from train.models.configs import KnnConfig
from train.models.projection import tangent_projection

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
ROUNDS = {  # what only moves numbers, or rounds them on their way into a product and out of it
    *("_to_copy", "t", "transpose", "view", "_unsafe_view", "expand", "detach", "alias", "slice", "split", "select"),
    *("cat", "stack", "unbind", "reshape", "as_strided", "permute", "unsqueeze", "squeeze", "copy_", "clone", "empty"),
    *("empty_like", "new_empty", "empty_strided", "new_empty_strided", "zeros", "new_zeros", "zeros_like"),
}
FORWARD = {"gelu"}  # of a block, between its two products
BACKWARD = {"gelu_backward", "sum", "add"}  # its gradient; that of a bias, and of what is used by several products


class Spy(TorchDispatchMode):
    """Names of the operations that made bf16 numbers, forward and backward, and casts of each weight to bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[bool, set[str]] = {False: set(), True: set()}
        self.casts: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if any(t.dtype == torch.bfloat16 for t in tree_leaves(result) if isinstance(t, torch.Tensor)):
            self.made[torch._C._current_autograd_node() is not None].add(name)
            if name in ("_to_copy", "copy_"):
                self.casts.append(args[-1 if name == "copy_" else 0].data_ptr())
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
    weights.remove(model.decoder[1].weight.data_ptr())  # expression is not rounded to bf16
    optimizer = make_optimizer(model, data.inputs, FitConfig(lr=1e-3))
    for _ in range(2):
        with Spy() as spy:
            log = step(model, data.inputs, optimizer, read_batch(data, torch.arange(32)))
        assert spy.made[False] <= PRODUCTS | ROUNDS | FORWARD
        assert spy.made[True] <= PRODUCTS | ROUNDS | BACKWARD
        assert all(PRODUCTS & made for made in spy.made.values())
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
    assert not spy.made[False] | spy.made[True]


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


@pytest.mark.parametrize("variant", ["full", "euclidean"])
def test_geometry_and_losses_are_the_same_bits_in_either_precision(variant: str) -> None:
    """From the same tangent vectors: nothing of them is a product of the kind that autocast rounds."""
    data = make_data()
    model = make_model(data, variant)
    vectors = torch.randn(4, 48, 16, generator=torch.Generator().manual_seed(5))
    found = []
    for model.precision in ("bf16", "fp32"):
        leaf = vectors.clone().requires_grad_()
        with model.autocast(leaf.device):
            embeddings = model.embed(SpotNiche(leaf[0], leaf[1]), SpotNiche(leaf[2], leaf[3]))
            hca = contrast_loss(embeddings, model.variant.terms)
            hea, cones = entailment_loss(embeddings, model.variant.terms)
            summary = geometry_summary(embeddings, model.variant.terms.geometry)
            points = tangent_projection(embeddings, model.variant.terms.geometry).points
        (hca + hea).backward()
        found.append([hca, hea, leaf.grad, *cones.values(), *summary.values(), *map(torch.from_numpy, points.values())])
    for bf16, fp32 in zip(*found, strict=True):
        assert bf16.dtype == fp32.dtype
        assert bf16.dtype in (torch.float32, torch.float64)
        torch.testing.assert_close(bf16, fp32, rtol=0, atol=0, equal_nan=True)


def test_a_model_that_does_not_learn_stays_in_its_own_precision() -> None:
    setting = replace(SETTING, fit=replace(SETTING.fit, precision="bf16"))
    assert setting_model(setting).precision == "bf16"
    knn = replace(setting, model=KnnConfig(64, 60), model_name="knn", variant=None)
    assert setting_model(knn).precision == "fp32"
    assert knn.name == replace(knn, fit=SETTING.fit).name
    assert setting.name != SETTING.name
    assert SETTING.name == replace(SETTING, fit=replace(SETTING.fit, precision="fp32")).name
