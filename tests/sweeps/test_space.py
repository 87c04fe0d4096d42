"""What can be searched, and what is refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import optuna
import pytest

from hist_cache.errors import InputError
from hist_cache.options import all_option_names
from sweeps.options import SweepOptions
from sweeps.space import SPACES_FILE, _read, read_space
from sweeps.study import LIST_OPTIONS, check_single, objective_named
from train.experiments.grid import Point


def options_with(**values: Any) -> SweepOptions:
    """Options as if these had been given."""
    return SweepOptions().with_values(values)


def test_the_default_space_is_alpha_beta_and_curvature_learned_or_fixed() -> None:
    space = read_space(SweepOptions())
    assert {p.name for p in space} == {"alpha", "beta", "curvature", "fixed_curvature"}
    assert next(p for p in space if p.name == "curvature").log
    assert next(p for p in space if p.name == "fixed_curvature").choices == (False, True)


def test_every_row_can_be_searched_and_is_an_option_of_hist_train() -> None:
    names = set(_read(SPACES_FILE))
    assert names <= set(all_option_names(SweepOptions))
    space = read_space(options_with(space=",".join(names)))
    assert {p.name for p in space} == names
    trial = optuna.create_study().ask()
    for p in space:
        assert p.holds(p.suggest(trial))


def test_an_option_that_is_given_is_held_not_searched() -> None:
    assert "alpha" not in {p.name for p in read_space(options_with(alpha=0.3))}
    assert "fixed_curvature" not in {p.name for p in read_space(options_with(space="curvature", fixed_curvature=True))}
    with pytest.raises(InputError, match=r"--alpha 0\.3: also named in --space; leave one out"):
        read_space(options_with(space="alpha,beta", alpha=0.3))


@pytest.mark.parametrize("ending", [".toml", ".yaml"])
def test_a_file_of_ones_own(ending: str, tmp_path: Path) -> None:
    text = {".toml": "[lr]\nlow = 1e-4\nhigh = 1e-2\nlog = true\n[depth]\nlow = 1\nhigh = 3\nint = true\n",
            ".yaml": "lr: {low: 1e-4, high: 1e-2, log: true}\ndepth: {low: 1, high: 3, int: true}\n"}  # fmt: skip
    file = tmp_path / f"mine{ending}"
    file.write_text(text[ending])
    lr, depth = sorted(read_space(options_with(space=str(file))), key=lambda p: p.name, reverse=True)
    assert (lr.name, lr.low, lr.high, lr.log) == ("lr", 1e-4, 1e-2, True)
    assert (depth.low, depth.high, depth.integer) == (1, 3, True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[alhpa]\nlow = 1\nhigh = 2\n", r"alhpa cannot be searched \(did you mean alpha\?\); there are alpha, beta"),
        ("[alpha]\nlow = 2\nhigh = 2\n", "alpha: the range from 2 to 2 is empty"),
        ("[alpha]\nlow = 3.5\nhigh = 0.1\n", "alpha: the range from 3.5 to 0.1 is empty"),
        ("[alpha]\nlow = 0.0\nhigh = 1\nlog = true\n", "alpha: low 0.0: must be above 0 with log"),
        ("[alpha]\nlow = 0.1\nhigh = 1\nstep = 3\n", "alpha: unknown key step; there are low, high"),
        ("[alpha]\nlow = 0.1\n", "alpha: needs high, a number"),
        ("[width]\nchoices = [8]\n", "width: choices .8.: give a list of two or more"),
        ("[width]\nchoices = [8, 16]\nlow = 8\n", "width: a range or choices, not both"),
        ("alpha = 3\n", "no search space; give names with low and high"),
        ("", "no search space"),
        ("[alpha\n", "not readable as a search space"),
    ],
)
def test_a_wrong_file_is_one_clear_sentence(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        read_space(options_with(space=str(file)))
    assert "space.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_and_an_unknown_name() -> None:
    with pytest.raises(InputError, match=r"no\.toml: not readable"):
        read_space(options_with(space="no.toml"))
    with pytest.raises(InputError, match="--space: gamma cannot be searched; there are alpha"):
        read_space(options_with(space="alpha,gamma"))


def test_the_objective_is_what_the_smallest_panel_has() -> None:
    assert objective_named(None, 200) == "pcc@200"
    assert objective_named(None, 1000) == "pcc@200"
    assert objective_named(None, 60) == "pcc@50"
    assert objective_named(None, 5) == "mse"
    assert objective_named("mse", 200) == "mse"
    with pytest.raises(InputError, match="--objective pcc@200: a panel of 60 genes has pcc@10, pcc@50, mse, mae"):
        objective_named("pcc@200", 60)


@pytest.mark.parametrize("name", LIST_OPTIONS)
def test_a_study_has_one_value_of_what_may_be_a_list(name: str) -> None:
    check_single(options_with(**{name: "6"}), ())
    with pytest.raises(InputError, match="6,18: a study has one value of each option; give one"):
        check_single(options_with(**{name: "6,18"}), ())


def test_all_options_that_may_be_lists_are_known() -> None:
    assert {*LIST_OPTIONS, "numbers"} == {f.name for f in fields(Point)}


def test_a_study_has_one_of_each_number() -> None:
    check_single(options_with(lr=1e-3, seed=3), ())
    with pytest.raises(InputError, match=r"--lr 1e-3,1e-4: a study has one value .*; search it \(--space lr\) or give"):
        check_single(options_with(lr="1e-3,1e-4"), ("lr",))
