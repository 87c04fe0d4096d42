"""The model that CONTRIBUTING.md shows how to add."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest
import torch

from hist_cache.options import option
from tests.conftest import REPOSITORY
from tests.train.fit.test_loop import make_data
from train.fit.batches import read_batch
from train.models import configs


def test_the_example_learns_what_a_recipe_makes_of_expression(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.DOTALL)
    model_file, config = blocks[:2]
    names = {"dataclass": dataclass, "option": option, "ModelConfig": configs.ModelConfig, "__name__": configs.__name__}
    exec(config, names)
    monkeypatch.setattr(configs, "MlpConfig", names["MlpConfig"], raising=False)
    exec(model_file, names)
    data = make_data()
    batch = read_batch(data, torch.arange(12))
    batch = replace(batch, target=batch.expression - 3)
    torch.manual_seed(0)
    model = names["MlpModel"](names["MlpConfig"](batch.spot.shape[1], batch.target.shape[1], hidden_width=8))
    loss, log = model.loss(batch)
    expected = (model.predict(batch) - batch.target).square().mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(log["mse"], expected.detach())
    model.pearson = 1.0
    assert model.loss(batch)[0] > expected
