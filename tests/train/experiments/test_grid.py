"""Grids from options with several values, and from the paper's tables."""

from __future__ import annotations

from typing import Any

import pytest

from hist_cache.errors import InputError
from hist_cache.options import parse
from train.experiments.grid import Point, first_seed, options_at, points, table_row, with_table
from train.models.registry import model_entries
from train.models.variants import load_variants
from train.options import TrainOptions


def options(*argv: object) -> TrainOptions:
    return parse(TrainOptions, "hist-train", "", [str(a) for a in argv])


def grid(**given: object) -> list[Point]:
    return points(TrainOptions().with_values(given))


def test_without_lists_it_is_one_point() -> None:
    assert grid() == [Point("full", 6, "hmhvg", None, None, "paper", "log2", 0, "hist")]


def test_every_combination_with_variants_fastest() -> None:
    found = grid(ablation="no_hea,clip", neighbors="6,18", split="slide, patient")
    assert [(p.split, p.neighbors, p.ablation) for p in found] == [
        (split, k, name) for split in ("slide", "patient") for k in (6, 18) for name in ("no_hea", "clip")
    ]


def test_numbers_are_axes_of_the_models_that_use_them() -> None:
    found = grid(model="hist,ridge", seed="1,2", lr="1e-3,1e-4", width=64)
    assert [(p.model, dict(p.numbers)) for p in found] == [
        ("hist", {"seed": 1, "lr": 1e-3}), ("ridge", {"seed": 1}), ("hist", {"seed": 1, "lr": 1e-4}),
        ("hist", {"seed": 2, "lr": 1e-3}), ("ridge", {"seed": 2}), ("hist", {"seed": 2, "lr": 1e-4}),
    ]  # fmt: skip
    assert [p.numbers for p in grid(seed="3,3", dropout="0.1")] == [(("seed", 3), ("dropout", 0.1))]
    asked = TrainOptions().with_values({"model": "hist,ridge", "seed": "1,2", "lr": "1e-3,1e-4"})
    of_ridge = options_at(points(asked)[1], asked)
    assert (of_ridge.seed, of_ridge.config_values["lr"]) == (1, 1e-3), "one number, though ridge has no learning rate"
    assert first_seed(asked) == 1


def test_all_is_every_row_of_the_table_and_nothing_is_run_twice() -> None:
    assert [p.ablation for p in grid(ablation="all")] == list(load_variants())
    assert len(grid(ablation="full,full", neighbors="6,6")) == 1


def test_variants_are_of_the_models_that_have_them() -> None:
    found = grid(model="hist,ridge", ablation="full,no_hea", neighbors="6,18")
    assert [(p.neighbors, p.model, p.ablation) for p in found] == [
        (k, *method) for k in (6, 18) for method in (("hist", "full"), ("hist", "no_hea"), ("ridge", ""))
    ]
    assert {p.model for p in grid(model="all")} == {entry.name for entry in model_entries()}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"neighbors": "6,7"}, "--neighbors 7: one of 6, 18, 36"),
        ({"lr": "1e-3,0"}, "--lr 0: must be above 0"),
        ({"seed": "1,-2"}, "--seed -2: must be from 0 to"),
        ({"neighbors": "six"}, "--neighbors six: a whole number"),
        ({"n_genes": "200,-1"}, "--n-genes 200,-1: must be 1 or more"),
        ({"ablation": "full,no_hae"}, "'no_hae'"),
        ({"ablation": "full,"}, "''"),
        ({"protocol": "paper,stict"}, "--protocol stict"),
        ({"transform": "log3"}, "--transform log3 (did you mean log2?): one of log2, ln_cp10k"),
        ({"model": "hist,rigde"}, "--model rigde: no such model (did you mean ridge?); there are hist"),
        ({"model": "ridge", "finetune_lora": True}, "--finetune-lora: --model ridge is not trained by gradient steps"),
        ({"model": "ridge,knn", "alpha": 0.3}, "--alpha: no option of --model ridge,knn"),
        ({"model": "ridge", "standardize": "slide"}, "--standardize: no option of --model ridge; leave one out"),
        ({"model": "ridge", "select_by": "pcc"}, "--select-by: no option of --model ridge"),
        ({"model": "ridge,knn", "ensemble": 3}, "--ensemble: no option of --model ridge,knn"),
        ({"model": "knn", "epochs": 3}, "--epochs: no option of --model knn"),
        ({"model": "ridge_tuned", "ridge": "skip"}, "--ridge: no option of --model ridge_tuned"),
        ({"model": "ridge", "ablation": "no_hea"}, "--ablation no_hea: --model ridge has no variants"),
    ],
)
def test_wrong_values_are_named(given: dict[str, str], says: str) -> None:
    with pytest.raises(InputError) as error:
        grid(**given)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "given",
    [
        {"model": "hist,ridge", "standardize": "slide", "ensemble": 3},
        {"model": "knn", "ridge": "mean", "smooth": 0.5},
        {"model": "ridge_tuned", "select_by": "pcc", "seed": 3},
        {"model": "ridge", "recipe": "strong"},
    ],
)
def test_what_one_of_the_models_uses_is_taken(given: dict[str, object]) -> None:
    assert grid(**given)


def set_by_table(*argv: object) -> dict[str, Any]:
    """What `--table` sets beside the options that are given."""
    before = options(*argv)
    after = with_table(before)
    return {name: getattr(after, name) for name in after.given - before.given}


def test_tables_of_the_paper() -> None:
    assert set_by_table("--table", 3) == {"ablation": "full,no_gi_hea,no_hea,no_hha,meru,clip"}
    assert set_by_table("--table", 6) == {"test_dataset": "kidney_papilla"}
    assert set_by_table("--table", 9) == {"n_genes": "200,1000,3000"}
    assert set_by_table("--table", 10) == {"neighbors": "6,18,36"}
    assert set_by_table("--table", 8, "--split", "loso") == {}  # what is given beside it holds
    assert table_row(9)["cost"]
    with pytest.raises(InputError, match="--table 2: there are 1, 3"):
        table_row(2)
    assert set_by_table("--table", 14) == {"finetune_lora": True, "lora_layers": "0,5,7,11"}


@pytest.mark.parametrize(
    ("table", "given"),
    [
        (3, ("--ablation", "full")),
        (10, ("--neighbors", "6")),
        (7, ("--genes", "hmhvg")),
        (14, ("--lora-layers", "11")),
    ],
)
def test_a_default_that_is_given_beside_a_table_holds(table: int, given: tuple[str, str]) -> None:
    name = given[0].strip("-").replace("-", "_")
    assert getattr(with_table(options("--table", table, *given)), name) == given[1]
    assert getattr(with_table(options("--table", table)), name) != given[1]


def test_a_default_in_a_configuration_file_counts_as_given(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("options") / "o.yaml"
    file.write_text("ablation: full\n")
    assert with_table(options("--config", file, "--table", 3)).ablation == "full"


def test_fine_tuned_blocks_count_only_with_fine_tuning() -> None:
    assert {p.lora_layers for p in grid(lora_layers="5,7")} == {0}
    assert [p.lora_layers for p in grid(lora_layers="0,11", finetune_lora=True)] == [0, 11]
    both = grid(lora_layers="0,1", finetune_lora=True, model="hist,ridge")
    assert [(p.model, p.lora_layers) for p in both] == [("hist", 0), ("ridge", 0), ("hist", 1)]
    assert [p.lora_layers for p in grid(finetune_lora=True)] == [None]  # as many as the encoder has, 11 at most
