"""Recipes by name: rows of this program are valid options, and a bad file of a user's ends in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hist_cache.checked import check_fields
from hist_cache.errors import InputError
from hist_cache.options import option_fields
from tests.commands import REPOSITORY
from tests.fuzzing import fuzz
from train.cli import main
from train.experiments.announcements import open_workspace
from train.experiments.grid import points
from train.experiments.jobs import make_jobs
from train.fit.config import FitConfig
from train.options import TrainOptions
from train.recipes.config import DEFAULT_RECIPE, RecipeConfig
from train.recipes.table import read_rows, recipe_names, recipe_options

Run = Callable[..., tuple[int, str]]
SMALL = ("--n-genes", 20, "--split", "loso", "--fold", 0, "--dry-run")  # what the tiny slides have
BENCHMARK = REPOSITORY / "benchmarks/recipes.toml"


def rows_and_files() -> list[tuple[str, Path | None]]:
    return [*((name, None) for name in recipe_names()), *((name, BENCHMARK) for name in read_rows(BENCHMARK))]


@pytest.mark.parametrize(("name", "file"), rows_and_files())
def test_rows_are_options(name: str, file: Path | None) -> None:
    values = recipe_options(name, file)
    kinds = {f.name: kind for kind in (RecipeConfig, FitConfig) for f in option_fields(kind)}
    for kind in (RecipeConfig, FitConfig):
        config = kind(**{key: value for key, value in values.items() if kinds.get(key) is kind})
        check_fields(config)
        for key, value in values.items():
            if kinds.get(key) is kind:
                assert getattr(config, key) == value
                assert value != getattr(kind(), key), "a row names what it changes"
    options = TrainOptions().with_values({"recipe": name, "recipe_file": str(file) if file else None})
    assert [point.recipe for point in points(options)] == [name]


def test_the_first_recipe_is_the_one_without_switches() -> None:
    assert recipe_names()[0] == DEFAULT_RECIPE == TrainOptions().recipe == RecipeConfig().name
    assert recipe_options(DEFAULT_RECIPE) == {}
    changed = recipe_options("strong")
    changed["pearson"] = 1
    assert "pearson" not in recipe_options("strong"), "a copy"


def test_recipes_of_a_file_stand_beside_those_of_the_program(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text('[mine]\ndescription = "x"\n[mine.options]\nema = 0.9\nsmooth = 0.5\n[plain]\n')
    assert recipe_options("mine", file) == {"ema": 0.9, "smooth": 0.5}
    assert recipe_options("plain", file) == {}
    assert recipe_options("strong", file) == recipe_options("strong")
    with pytest.raises(InputError, match="--recipe other: there are paper, strong, mine, plain"):
        recipe_options("other", file)
    with pytest.raises(InputError, match=r"--recipe mine: there are paper, strong$"):
        recipe_options("mine")


BAD_FILES = [
    ("[mine", "Expected ']'"),
    ("mine = 3", "'mine' is no recipe; give tables [NAME.options]"),
    ("[[mine]]\nema = 0.9", "'mine' is no recipe"),
    ("[mine]\noptions = 3", "'mine' is no recipe"),
    ("[mine]\nema = 0.9", "'mine' has the entry 'ema'; give tables [NAME.options]"),
    ("[strong.options]\nema = 0.9", "'strong' has the name of a recipe of this program"),
    ('["a,b".options]\nema = 0.9', "'a,b' cannot be given as --recipe"),
    ('["a\\nb".options]\nema = 0.9', "'a\\nb' cannot be given as --recipe"),
    ('["".options]\nema = 0.9', "'' cannot be given as --recipe"),
    (f"x = {'[' * 5000}", "nested too deep"),
    (b"\xff\xfe", "not text in UTF-8"),
]


@pytest.mark.parametrize(("content", "says"), BAD_FILES)
def test_a_bad_file_ends_in_one_line(content: str | bytes, says: str, tmp_path: Path, run_command: Run) -> None:
    (tmp_path / "r.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    code, text = run_command(main, "--recipe-file", "r.toml", "--recipe", "mine")
    assert code == 2
    (line,) = text.splitlines()
    assert line.startswith("error: --recipe-file r.toml: ")
    assert says in line


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--recipe", "none"), "--recipe none: there are paper, strong"),
        (("--recipe", "paper,none"), "--recipe none: there are paper, strong"),
        (("--recipe-file", "nowhere.toml"), "--recipe-file nowhere.toml: no such file"),
        (("--recipe-file", "."), "--recipe-file .: not a file"),
        (("--smooth", "1.5"), "--smooth 1.5: must be from 0 to 1"),
        (("--standardize", "spot"), "--standardize spot: one of none, slide, train"),
        (("--level", "best"), "--level best: one of train_mean, ridge"),
    ],
)
def test_wrong_options_end_in_one_line(argv: tuple[str, ...], says: str, run_command: Run) -> None:
    code, text = run_command(main, *argv)
    assert code == 2
    (line,) = text.splitlines()
    assert line.startswith(f"error: {says}")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("lr = 'a'", "--lr a: must be above 0"),
        ("smooth = '1'", "--smooth 1: must be from 0 to 1"),
        ("ensemble = 2.5", "'ensemble' is 2.5"),
        ("ensemble = true", "--ensemble True: must be"),
        ("targets = 'half'", "'targets' is 'half'"),
        ("select_by = 'r2'", "'select_by' is 'r2'"),
        ("standardize = 1", "'standardize' is 1"),
        ("level = 'ridge'", "--level ridge: raw targets have their level; give --targets centered too"),
        ("width = 'a'", "--width a: must be"),
        ("width = 2.5", "'width' is 2.5"),
        ("curvature = []", "curvature"),
        ("cache = 'x'", "cache is no option that a recipe sets"),
        ("name = 'x'", "name is no option that a recipe sets"),
        ("precision = 'bf16'", "precision is no option that a recipe sets"),
        ("eam = 0.9", "eam is no option that a recipe sets"),
    ],
)
def test_wrong_values_in_a_row_end_in_one_line(
    options: str, says: str, cache: Path, tmp_path: Path, run_command: Run
) -> None:
    (tmp_path / "r.toml").write_text(f"[mine.options]\n{options}\n")
    code, text = run_command(main, "--cache", cache, "--recipe-file", "r.toml", "--recipe", "mine", *SMALL)
    assert code == 2, text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert says in line
    assert "Traceback" not in text


@pytest.mark.parametrize("more", [(), ("--recipe", "strong", "--targets", "raw")])
def test_a_level_of_ridge_is_refused_with_raw_targets(more: tuple[str, ...], cache: Path, run_command: Run) -> None:
    code, text = run_command(main, "--cache", cache, "--level", "ridge", *SMALL, *more)
    assert code == 2
    assert "error: --level ridge: raw targets have their level; give --targets centered too" in text


def test_what_is_given_overrides_a_row(cache: Path) -> None:
    options = TrainOptions().with_values({"recipe": "strong", "level": "train_mean", "targets": "raw", "n_genes": "20"})
    options = options.with_values({"neighbor_rings": 1})
    options = options.with_values({"cache": str(cache), "split": "loso", "select_by": "pcc"})
    grid = points(options)
    setting = make_jobs(grid, options, open_workspace(options, [6]), cache / "runs")[0].setting
    assert setting.recipe == RecipeConfig("slide", 1, "raw", "train_mean", "skip", 0.5, 3, name="strong")
    assert setting.fit.select_by == "pcc"
    assert setting.model.embedding_width == 2 * 64, "a spot and its ring"


def test_fine_tuning_takes_no_other_inputs(cache: Path, run_command: Run) -> None:
    code, text = run_command(main, "--cache", cache, "--finetune-lora", "--recipe", "strong", *SMALL)
    assert code == 2
    assert "error: --finetune-lora: the encoder's embeddings change in every step" in text


VALUES: Any = st.recursive(
    st.one_of(
        st.integers(-5, 5).map(str), st.sampled_from(["true", "0.5", "'x'", "nan", "2001-01-01", "'''a\nb'''", "1e999"])
    ),
    lambda inner: st.lists(inner, max_size=2).map(lambda parts: f"[{', '.join(parts)}]"),
    max_leaves=4,
)


@pytest.mark.fuzz
@fuzz(60)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(["[a]", "[a.options]", "[paper]", "[a.options.b]", "['a b'.options]", '["\\u0000"]', "["]),
            st.tuples(st.sampled_from(["ema", "options", "a", '"\\t"', "description"]), VALUES).map(" = ".join),
        ),
        max_size=5,
    )
)
def test_any_file_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_text("\n".join(lines))
    message, rows = "", {}
    try:
        rows = read_rows(file)
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert not message or message.startswith(f"--recipe-file {file}: ")
    assert all(isinstance(recipe_options(name, file), dict) for name in rows)
