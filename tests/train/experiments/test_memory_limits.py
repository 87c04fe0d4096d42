"""What a model and an ensemble of such models need of memory and of the disk."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hist_cache.errors import HistError
from tests.train.report.fake_runs import SETTING
from train.experiments import memory_limits
from train.experiments.memory_limits import check_model_fits
from train.experiments.outputs import fold_bytes, make_member
from train.recipes.config import RecipeConfig


@pytest.mark.parametrize(("members", "copies"), [(1, 4), (3, 6)])
def test_members_that_are_trained_keep_their_weights(
    members: int, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one in training has its gradients and two moments beside them."""
    setting = replace(SETTING, recipe=RecipeConfig(ensemble=members))
    weights = sum(p.numel() * p.element_size() for p in make_member(setting).parameters())
    monkeypatch.setattr(memory_limits, "free_memory", lambda: copies * weights)
    check_model_fits(setting, torch.device("cpu"))
    monkeypatch.setattr(memory_limits, "free_memory", lambda: copies * weights - 1)
    with pytest.raises(HistError, match="give a smaller model") as caught:
        check_model_fits(setting, torch.device("cpu"))
    assert ("--ensemble" in str(caught.value)) == (members > 1)


def test_each_member_writes_its_weights_and_a_checkpoint() -> None:
    model = make_member(SETTING)
    assert fold_bytes(model, 3) == 3 * fold_bytes(model)
