"""Recipes as commands and as trainings: what is selected where slides have offsets, and that nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sweeps.cli
import train.cli
from hist_cache import load_run
from hist_cache.splits import Split
from tests import small
from tests.conftest import REPOSITORY
from train.data import SpotData
from train.depth import depth_warnings
from train.experiments.cautions import selection_warnings
from train.experiments.outputs import load_model
from train.experiments.setting import read_setting
from train.fit.config import FitConfig
from train.fit.loop import fit, predict
from train.metrics import gene_pcc
from train.models.components import principal_components
from train.models.configs import HistConfig
from train.models.hist import HistModel
from train.models.variants import get_variant
from train.recipes.config import RecipeConfig
from train.recipes.fitted import FittedRecipe, fit_recipe

Run = Callable[..., tuple[int, str]]
STRONG = ("--recipe", "strong", "--ensemble", 1)


def metrics_of(runs: Path) -> dict[str, dict[str, object]]:
    """Metrics by run and fold."""
    files = sorted(runs.rglob("metrics.json"))
    return {f"{f.parents[1].name}/{f.parent.name}": json.loads(f.read_text()) for f in files}


def test_the_paper_recipe_gives_the_stored_numbers(plain_runs: Path) -> None:
    """Those of the commit before recipes, to the last digit where processor and torch are the same."""
    stored = json.loads((REPOSITORY / "tests/data/paper_recipe.json").read_text())
    pooled = {name.split("/")[1]: metrics["pooled"] for name, metrics in metrics_of(plain_runs).items()}
    here = {"cpu": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}
    if here == {name: stored[name] for name in here}:
        assert pooled == stored["folds"]
    for fold, values in stored["folds"].items():
        assert pooled[fold] == pytest.approx(values, rel=0.05), "random weights may be others elsewhere"


def planted(offset_of_val: float, n: int = 80) -> SpotData:
    """Four slides with one signal; the validation slide C has another offset, as a shallower one has."""
    g = torch.Generator().manual_seed(3)
    spot, niche = torch.randn(2, 4 * n, 12, generator=g)
    mixing = torch.randn(24, 8, generator=g) / 24**0.5
    signal = torch.cat([spot, niche], dim=1) @ mixing
    slide = torch.arange(4).repeat_interleave(n)
    level = torch.tensor([6.0, 6.0, offset_of_val, 6.0])[slide].unsqueeze(1)
    y = level + signal + 0.2 * torch.randn(4 * n, 8, generator=g)
    rows, complete = torch.arange(4 * n) % n, torch.ones(4 * n, dtype=torch.bool)
    names = [f"G{i}" for i in range(8)]
    depth = 1000 * 2 ** (level.squeeze(1) - 6)
    return SpotData(spot.half(), niche.half(), y, y, slide, rows, complete, ["A", "B", "C", "D"], names, total=depth)


def fitted_on(data: SpotData, recipe: RecipeConfig, select_by: str) -> FittedRecipe:
    """The recipe on train slides A and B and validation slide C."""
    train, val = data.rows(["A", "B"]), data.rows(["C"])
    return fit_recipe(recipe, data, train, val, select_by, *[lambda read: principal_components(read, train, 24)] * 2)


def trained(data: SpotData, recipe: RecipeConfig, **more: object) -> tuple[float, list[str]]:
    """PCC on the test slide D, and what is said of the selection."""
    config = FitConfig(epochs=40, patience=10, batch_size=40, lr=5e-3, **more)  # type: ignore[arg-type]
    train, val, test = (data.rows(names) for names in (["A", "B"], ["C"], ["D"]))
    fitted = fitted_on(data, recipe, config.select_by)
    torch.manual_seed(0)
    model = HistModel(HistConfig(12, 8, width=16, depth=1), get_variant("full"))
    progress = fit(model, fitted.data, train, val, config, None)
    predicted = fitted.complete(predict(model, fitted.data, test), test)
    pcc = gene_pcc(predicted.numpy(), data.expression[test].numpy()).mean()
    return float(pcc), selection_warnings([progress], config, ["C"], "best")


def test_the_offset_of_a_validation_slide_stops_training_at_once_only_where_it_counts() -> None:
    data = planted(offset_of_val=-1.0)
    by_mse, warnings = trained(data, RecipeConfig())
    assert by_mse < 0.6
    assert len(warnings) == 1
    assert "best epoch is 0 of 11" in warnings[0]
    assert "C" in warnings[0]
    (too_shallow,) = depth_warnings(data.depths(), Split(("A", "B"), ("C",), ("D",), "one"))
    assert "validation slide C has a median of 8 counts a spot, train slides 1,000" in too_shallow
    for recipe, rule in ((RecipeConfig(), "centered_mse"), (RecipeConfig(), "pcc")):
        pcc, warnings = trained(data, recipe, select_by=rule)
        assert pcc > 0.85
        assert warnings == []
    centered = RecipeConfig(targets="centered", level="ridge")
    pcc, warnings = trained(data, centered, select_by="centered_mse")
    assert pcc > 0.85
    assert warnings == []


def test_patience_is_counted_in_steps_where_epochs_are_short() -> None:
    config = FitConfig(patience=10, patience_steps=100)
    assert [config.patience_in_epochs(steps) for steps in (1, 3, 10, 1000)] == [100, 34, 10, 10]


def test_a_fold_that_is_far_below_ridge_says_so(plain_runs: Path) -> None:
    for metrics in metrics_of(plain_runs).values():
        own, ridge = metrics["pooled"]["pcc@10"], metrics["controls"]["ridge"]["pcc@10"]  # type: ignore[index]
        said = any("far below ridge" in text for text in metrics["warnings"])  # type: ignore[attr-defined]
        assert said == (ridge > 0 and own < 0.8 * ridge)


def test_every_switch_as_a_command(cache: Path, tmp_path: Path, run_command: Run) -> None:
    """A grid of recipes: each has a name and numbers of its own, and its files hold what a later prediction needs."""
    rows = {
        "sized": 'standardize = "slide"\nneighbor_rings = 2',
        "trained": 'standardize = "train"\ntargets = "centered"\nlevel = "ridge"\nselect_by = "pcc"',
        "skipped": 'ridge = "skip"\ntargets = "centered"\nselect_by = "centered_mse"\npearson = 0.5\nema = 0.9',
        "averaged": 'ridge = "mean"\nsmooth = 0.5',
        "several": "ensemble = 2\npatience_steps = 3",
    }
    file = tmp_path / "mine.toml"
    file.write_text("".join(f"[{name}.options]\n{text}\n" for name, text in rows.items()))
    argv = ("--cache", cache, *small.TRAIN, "--fold", 0, "--runs", tmp_path / "runs")
    code, text = run_command(train.cli.main, *argv, "--recipe", ",".join(["paper", *rows]), "--recipe-file", file)
    assert code == 0, text
    metrics = metrics_of(tmp_path / "runs")
    assert len(metrics) == 6
    assert len({json.dumps(m["pooled"]) for m in metrics.values()}) == 6
    by_recipe = {}
    for name, values in metrics.items():
        folder = tmp_path / "runs" / "tiny" / name
        setting = read_setting(folder / "config.json", json.loads((folder / "config.json").read_text()))
        assert setting.name == name.split("/")[0]
        by_recipe[setting.recipe.name] = (folder, setting)
        assert ("ridge_tuned" in values["controls"]) == (setting.recipe.name != "paper")  # type: ignore[operator]
        load_model(folder)
    assert set(by_recipe) == {"paper", *rows}
    assert by_recipe["averaged"][1].method == "full+ridge", "a mean with ridge is another model"
    assert by_recipe["sized"][1].model.embedding_width == 3 * by_recipe["paper"][1].model.embedding_width
    stored = {name: (folder / "recipe.safetensors").exists() for name, (folder, _) in by_recipe.items()}
    assert stored == dict.fromkeys(rows, True) | {"paper": False}
    history = load_run(by_recipe["several"][0].parent).folds[0].history
    assert sorted(history["member"].unique()) == [0, 1]
    assert not list((tmp_path / "runs").rglob("checkpoint*"))

    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("metrics.json")}
    code, _ = run_command(train.cli.main, *argv, "--recipe", ",".join(["paper", *rows]), "--recipe-file", file)
    assert code == 0
    assert before == {p: p.stat().st_mtime_ns for p in before}, "finished runs are found again"


def test_every_variant_and_model_takes_the_strong_recipe(cache: Path, tmp_path: Path, run_command: Run) -> None:
    argv = ("--cache", cache, *small.TRAIN, "--epochs", 1, "--fold", 0, "--runs", tmp_path, *STRONG)
    code, text = run_command(train.cli.main, *argv, "--ablation", "all", "--model", "hist,ridge,ridge_tuned,knn")
    assert code == 0, text
    metrics = metrics_of(tmp_path)
    (plain,) = (m for name, m in metrics.items() if name.startswith("ridge-"))
    (tuned,) = (m for name, m in metrics.items() if name.startswith("ridge_tuned-"))
    assert plain["pooled"] == pytest.approx(plain["controls"]["ridge"], abs=1e-4), "the probe stays as it is"  # type: ignore[index]
    control = tuned["controls"]["ridge_tuned"]  # type: ignore[index]
    assert tuned["pooled"] == pytest.approx(control, abs=1e-4), "the model and the baseline are one"


def test_a_stopped_ensemble_goes_on(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in its second member, it ends with the bytes of an unbroken one."""
    import train.experiments.members as members

    argv = [str(a) for a in ("--cache", cache, *small.TRAIN, "--fold", 0, "--ensemble", 3)]
    assert train.cli.main([*argv, "--runs", str(tmp_path / "whole")]) == 0
    train_one, count = members.train_one, 0

    def interrupted(*args: object, **more: object) -> object:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return train_one(*args, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(members, "train_one", interrupted)
        assert train.cli.main([*argv, "--runs", str(tmp_path / "broken")]) == 130
    (checkpoint,) = (tmp_path / "broken").rglob("checkpoint*.pt")
    assert checkpoint.name == "checkpoint.pt", "the first member stands there"
    assert train.cli.main([*argv, "--runs", str(tmp_path / "broken")]) == 0
    for name in ("model.safetensors", "metrics.json"):
        (one,), (other,) = ((tmp_path / runs).rglob(name) for runs in ("whole", "broken"))
        assert one.read_bytes() == other.read_bytes()


def test_what_cannot_be_is_refused_in_one_line(cache: Path, tmp_path: Path, run_command: Run) -> None:
    argv = ("--cache", cache, *small.TRAIN, "--runs", tmp_path)
    (tmp_path / "bad.toml").write_text('[mine.options]\nstandardise = "slide"\n')
    (tmp_path / "worse.toml").write_text('[mine.options]\nsmooth = "much"\n')
    for more, words in (
        (("--recipe", "weak"), "--recipe weak: there are paper, strong"),
        (("--recipe", "mine", "--recipe-file", tmp_path / "bad.toml"), "standardise is no option"),
        (("--recipe", "mine", "--recipe-file", tmp_path / "worse.toml"), "--smooth much: must be from 0 to 1"),
        (("--recipe", "mine", "--recipe-file", tmp_path / "none.toml"), "no such file"),
        (("--level", "ridge"), "--targets centered"),
        (("--finetune-lora", "--standardize", "slide"), "--standardize none"),
        (("--finetune-lora", "--ensemble", 2), "give --ensemble 1"),
        (("--neighbor-rings", "4"), "--neighbor-rings 4"),
        (("--ema", "1"), "--ema 1"),
    ):
        code, text = run_command(train.cli.main, *argv, *more)
        assert code == 2
        assert words in text
        assert len(text.strip().splitlines()[-1:]) == 1


def test_a_sweep_under_a_recipe(cache: Path, tmp_path: Path, run_command: Run) -> None:
    space = tmp_path / "space.toml"
    space.write_text('[standardize]\nchoices = ["none", "slide"]\n[smooth]\nlow = 0.0\nhigh = 0.5\n')
    argv = [*small.TRAIN]
    code, text = run_command(
        sweeps.cli.main, "--cache", cache, *argv, "--runs", tmp_path / "runs", *STRONG, "--space", space,
        "--trials", 2, "--folds", 1,
    )  # fmt: skip
    assert code == 0, text
    best = json.loads(next((tmp_path / "runs").rglob("best.json")).read_text())
    assert "--recipe strong" in best["command"]


def test_a_model_sees_no_expression_of_test_spots() -> None:
    """Other expression on the test slide changes nothing that is read or added."""
    data = planted(offset_of_val=6.0)
    changed = replace(data, expression=torch.where(data.slide.unsqueeze(1) == 3, torch.rand(320, 8), data.expression))
    recipe = RecipeConfig(standardize="train", targets="centered", level="ridge", ridge="skip")
    one, other = (fitted_on(d, recipe, "centered_mse").data for d in (data, changed))
    assert one.targets is not None
    assert other.targets is not None
    assert torch.equal(one.spot, other.spot)
    assert torch.equal(one.targets.offset, other.targets.offset)
    rows = data.rows(["A", "B", "C"])
    assert torch.equal(one.targets.target[rows], other.targets.target[rows])
    assert not np.allclose(one.targets.target.numpy(), other.targets.target.numpy())
