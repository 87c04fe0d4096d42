"""Files of a run with anything in them: reports read them, or say in one line which file is wrong."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from hist_cache.errors import InputError
from hist_cache.runs import load_run
from tests.fuzzing import fuzz
from tests.train.report.fake_runs import CONFIG, RIDGE, write_run
from train.report.cli import main
from train.report.context import configuration_table, result_warnings
from train.report.paper_tables import cost_table, results_tables
from train.report.reading import read_results

Run = Callable[..., tuple[int, str]]
FILES = ("metrics.json", "config.json", "cost.json", "panel.txt")
LITERALS = (None, True, 0, -1, 10**400, 1e999, 0.5, "", "text", "pcc@10", [], [1], [None], {}, {"mse": 1.0}, {"a": {}})


def report(folder: Path) -> None:
    """All that hist-report takes from the JSON files of runs."""
    results = read_results([folder])
    results_tables(results)
    cost_table(results)
    result_warnings(results)
    configuration_table(results)


def reported_or_refused(folder: Path, file: Path) -> None:
    message = f"{file}"
    try:
        report(folder)
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert message.startswith(f"{file.parent}"), "the file or its folder is named"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values in JSON."""
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for k, v in below for p in places(v, (*path, k)))]


@pytest.mark.fuzz
@fuzz(100)
@given(st.data())
def test_any_value_in_the_place_of_another(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as where:
        fold = write_run(Path(where), (0.7, 0.8)) / "fold1"
        file = fold / data.draw(st.sampled_from(FILES[:3]))
        content = json.loads(file.read_text())
        for _ in range(data.draw(st.integers(1, 3))):
            path = data.draw(st.sampled_from(places(content)))
            value = copy.deepcopy(data.draw(st.sampled_from(LITERALS)))
            if not path:
                content = value
                break
            parent = content
            for key in path[:-1]:
                parent = parent[key]
            if isinstance(parent, dict) and data.draw(st.booleans()):
                del parent[path[-1]]
            else:
                parent[path[-1]] = value
        file.write_text(json.dumps(content))
        reported_or_refused(Path(where), file)


@pytest.mark.fuzz
@fuzz(100)
@given(st.sampled_from(FILES), st.integers(0, 10**6), st.binary(max_size=4), st.booleans())
def test_any_bytes_in_the_place_of_others(name: str, at: int, content: bytes, cut: bool) -> None:
    with tempfile.TemporaryDirectory() as where:
        file = write_run(Path(where), (0.7, 0.8)) / "fold1" / name
        before = file.read_bytes()
        at %= len(before)
        file.write_bytes(before[:at] + content + (b"" if cut else before[at + len(content) :]))
        reported_or_refused(Path(where), file)


@pytest.mark.parametrize(
    "content", ["null", "[]", "3", '"text"', "", "{", '{"pooled": null}', b"\xff\xfe", "[" * 100000]
)
@pytest.mark.parametrize("name", ["metrics.json", "config.json"])
def test_a_file_that_is_none(run_command: Run, tmp_path: Path, name: str, content: str | bytes) -> None:
    file = write_run(tmp_path / "runs", (0.7,)) / "fold0" / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, text = run_command(main, "runs")
    assert code == 2, text
    assert text.startswith(f"error: runs/tiny/{file.parents[1].name}/fold0/{name}: ")
    assert text.count("\n") == 1


@pytest.mark.parametrize("name", ["config.json", "predictions.h5ad", "panel.txt", "training.png"])
def test_a_file_that_is_missing_or_damaged(run_command: Run, tmp_path: Path, name: str) -> None:
    for content in (None, b"\x89PNG\r\n\x1a\n" + bytes(100), b"\x89HDF\r\n\x1a\n" + bytes(200), b"\xff"):
        root = tmp_path / str(content is None) / str(len(content or b""))
        file = write_run(root, (0.7,), predictions=True) / "fold0" / name
        file.unlink() if content is None else file.write_bytes(content)
        code, text = run_command(main, root)
        assert code == 2 or (name == "training.png" and content is None), text
        assert "Traceback" not in text
        assert code == 0 or f"fold0/{name}" in text.replace("\n", "")


@pytest.mark.parametrize("name", ["metrics.json", "config.json", "panel.txt", "predictions.h5ad"])
def test_a_pipe_to_which_nobody_writes(run_command: Run, tmp_path: Path, name: str) -> None:
    file = write_run(tmp_path / "runs", (0.7,), predictions=True) / "fold0" / name
    file.unlink()
    os.mkfifo(file)
    code, text = run_command(main, "runs")
    assert code == 2, text
    assert f"fold0/{name}: not readable (ValueError: not a file)" in text.splitlines()[-1]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda table: table.obsm.update(spatial=table.obsm["spatial"] * np.nan), "holds no x and y of each spot"),
        (lambda table: table.obsm.update(spatial=table.obsm["spatial"][:, :1]), "holds no x and y of each spot"),
        (lambda table: table.obs.insert(0, "old", table.obs.pop("slide")), "no slide in obs"),
        (lambda table: setattr(table, "obs", table.obs.assign(slide="OTHER")), "no picture of OTHER in uns/spatial"),
        (lambda table: table.uns.clear(), "no spatial in uns"),
        (lambda table: table.uns.update(spatial=3), "no picture of "),
        (lambda table: setattr(table, "var_names", ["A"] * table.n_vars), "its genes are not those of panel.txt"),
        (lambda table: setattr(table, "X", csr_matrix(table.X)), "its expression is no array"),
    ],
)
def test_predictions_with_something_else_in_them(tmp_path: Path, damage: Callable[[Any], None], says: str) -> None:
    fold = load_run(write_run(tmp_path, (0.7,), predictions=True)).folds[0]
    table = fold.predictions
    damage(table)
    table.write_h5ad(fold.folder / "predictions.h5ad")
    with pytest.raises(InputError, match=f"predictions.h5ad: not readable .*{says}"):
        _ = fold.predictions


def test_folders_that_are_no_folds_are_left_alone(run_command: Run, tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", (0.7, 0.8), predictions=True)
    for name in ("fold0_old", "fold", "fold01", "fold-1", "fold٣"):
        (run / name).mkdir()
        (run / name / "metrics.json").write_text("null")
        (run / name / "config.json").write_text("null")
    other = tmp_path / "runs/tiny/only-old/fold0_old"
    other.mkdir(parents=True)
    (other / "metrics.json").write_text("null")
    code, text = run_command(main, "runs")
    assert code == 0, text
    assert len(read_results(["runs"]).runs[0].folds) == 2


def test_folds_of_different_settings_are_no_run(run_command: Run, tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", (0.7, 0.8))
    config = json.loads((run / "fold1/config.json").read_text())
    config["loop"]["lr"] = 0.5
    (run / "fold1/config.json").write_text(json.dumps(config))
    code, text = run_command(main, "runs")
    assert code == 2, text
    assert "fold1/config.json: another setting than that of fold0 beside it" in " ".join(text.split())
    assert CONFIG["loop"]["lr"] != 0.5


def test_options_of_training_that_a_model_does_not_use_may_differ(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", (0.7, 0.8), change=RIDGE)
    config = json.loads((run / "fold1/config.json").read_text())
    config["loop"]["lr"] = 0.5
    (run / "fold1/config.json").write_text(json.dumps(config))
    assert len(read_results([tmp_path / "runs"]).runs[0].folds) == 2
