from types import SimpleNamespace

import pytest

from hist_cache.errors import InputError
from train.cli import Config
from train.experiments.grid import points, table_options, table_row
from train.models.variants import load_variants


def grid(**options: object) -> list[tuple[object, ...]]:
    return [tuple(vars(p).values()) for p in points(SimpleNamespace(**(vars(Config()) | options)))]


def test_without_lists_it_is_one_point() -> None:
    assert grid() == [("full", 6, "hmhvg", None, None, "paper", "log2", 0)]


def test_every_combination_with_variants_fastest() -> None:
    found = grid(ablation="no_hea,clip", neighbors="6,18", split="slide, patient")
    assert [(p[4], p[1], p[0]) for p in found] == [
        (split, k, name) for split in ("slide", "patient") for k in (6, 18) for name in ("no_hea", "clip")
    ]


def test_all_is_every_row_of_the_table_and_nothing_is_run_twice() -> None:
    assert [p[0] for p in grid(ablation="all")] == list(load_variants())
    assert len(grid(ablation="full,full", neighbors="6,6")) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"neighbors": "6,7"}, "--neighbors 7: one of 6, 18, 36"),
        ({"neighbors": "six"}, "--neighbors six: a whole number"),
        ({"n_genes": "200,-1"}, "--n-genes 200,-1: must be 1 or more"),
        ({"ablation": "full,no_hae"}, "'no_hae'"),
        ({"ablation": "full,"}, "''"),
        ({"protocol": "paper,stict"}, "--protocol stict"),
        ({"transform": "log3"}, "--transform log3: one of log2, ln_cp10k"),
    ],
)
def test_wrong_values_are_named(options: dict[str, str], says: str) -> None:
    with pytest.raises(InputError) as error:
        grid(**options)
    assert says in str(error.value)


def options_of(number: int, **given: object) -> dict[str, object]:
    return table_options(number, vars(Config()) | given, vars(Config()))


def test_tables_of_the_paper() -> None:
    assert options_of(3) == {"ablation": "full,no_gi_hea,no_hea,no_hha,meru,clip"}
    assert options_of(6) == {"test_dataset": "kidney_papilla"}
    assert options_of(9) == {"n_genes": "200,1000,3000"}
    assert options_of(10) == {"neighbors": "6,18,36"}
    assert options_of(8, split="loso") == {}  # what is given beside it holds
    assert table_row(9)["cost"]
    with pytest.raises(InputError, match="--table 2: there are 1, 3"):
        table_row(2)
    assert options_of(14) == {"finetune_lora": True, "lora_layers": "0,5,7,11"}


def test_tuned_blocks_count_only_with_tuning() -> None:
    assert {p[7] for p in grid(lora_layers="5,7")} == {0}
    assert [p[7] for p in grid(lora_layers="0,11", finetune_lora=True)] == [0, 11]
