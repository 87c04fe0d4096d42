"""What a reader of a fold's numbers is warned of, and what not."""

from __future__ import annotations

import pytest

from hist_cache.values import SelectBy
from train.experiments.cautions import ridge_warnings, selection_warnings
from train.fit.checkpoints import Progress
from train.fit.config import FitConfig


@pytest.mark.parametrize(
    ("best", "epochs", "warned"),
    [
        *[(0, 11, True), (2, 13, True), (2, 4, True), (3, 14, False), (-1, 20, False)],
        *[(0, 3, True), (0, 2, True), (1, 3, True)],  # with --patience 2, --patience 1 or --epochs 3
        *[(0, 1, False), (2, 3, False)],  # the last epoch is the best
    ],
)
def test_an_epoch_among_the_first_is_said(best: int, epochs: int, warned: bool) -> None:
    progress = [Progress(epochs, best)]
    found = selection_warnings(progress, FitConfig(select_by="mse"), ("B", "C"), "best")
    assert len(found) == warned
    if found:
        assert found[0].startswith(f"selection: the best epoch is {best} of {epochs}: by mse on B, C training made")
        assert "\n" not in found[0]
    assert selection_warnings(progress, FitConfig(), ("B", "C"), "last") == [], "the best epoch is not tested"


@pytest.mark.parametrize(("rule", "advised"), [("mse", True), ("loss", True), ("centered_mse", False), ("pcc", False)])
def test_a_rule_that_counts_offsets_is_advised_against(rule: SelectBy, advised: bool) -> None:
    (found,) = selection_warnings([Progress(11, 0)], FitConfig(select_by=rule), ("B",), "best")
    assert ("--select-by centered_mse or pcc" in found) == advised
    assert "--validate-on alike" in found


def test_of_an_ensemble_the_early_members_are_named() -> None:
    members = [Progress(11, 0), Progress(30, 19), Progress(12, 1)]
    (found,) = selection_warnings(members, FitConfig(select_by="pcc"), ("B",), "best")
    assert "the best epoch is 0 of 11, 1 of 12: by pcc on B" in found
    assert selection_warnings(members[1:2], FitConfig(), ("B",), "best") == []
    assert selection_warnings([Progress()], FitConfig(), ("B",), "best") == [], "a model that does not learn"


@pytest.mark.parametrize(
    ("own", "ridge", "warned"),
    [(0.39, 0.5, True), (0.4, 0.5, False), (0.6, 0.5, False), (-0.1, 0.01, True), (-0.2, -0.1, False), (0, 0, False)],
)
def test_a_pcc_far_below_ridge_is_said(own: float, ridge: float, warned: bool) -> None:
    pooled = {"pcc@10": 0.0, "pcc@200": own, "pcc@1000": 0.0, "mse": 9.0}
    controls = {"ridge": {"pcc@10": 0.9, "pcc@200": ridge, "mse": 1.0}, "train_mean": {"pcc@1000": 0.9}}
    found = ridge_warnings(pooled, controls)
    assert len(found) == warned, "the largest PCC@k of both counts, by its number and not by its text"
    if found:
        assert found == [f"far below ridge: PCC@200 {own:.3f}, where ridge on the same embeddings has {ridge:.3f}"]


@pytest.mark.parametrize("controls", [{}, {"ridge": {}}, {"ridge": {"mse": 1.0}}, {"train_mean": {"pcc@10": 0.9}}])
def test_without_a_pcc_of_ridge_nothing_is_said(controls: dict) -> None:  # type: ignore[type-arg]
    assert ridge_warnings({"pcc@10": 0.0, "mse": 9.0}, controls) == []


def test_without_a_pcc_of_the_model_nothing_is_said() -> None:
    assert ridge_warnings({"mse": 9.0}, {"ridge": {"pcc@10": 0.9}}) == []
