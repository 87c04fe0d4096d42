"""A finished fold is read into types, and a file that is not one is refused in one line that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hist_cache.errors import InputError
from hist_cache.splits import Split
from tests.train.report.fake_runs import CONFIG, RIDGE, SETTING, write_run
from train.models.configs import RidgeConfig
from train.report.cli import main
from train.report.fold_result import read_fold
from train.report.reading import read_results
from train.report.run_settings import model_settings, settings_of

Run = Callable[..., tuple[int, str]]
ENTRIES = [*(key for key in CONFIG if key not in ("patients", "provenance")), "split"]  # which every fold has
OBJECTS = ("protocol", "cache", "split", "model", "loop", "patients", "provenance")  # neither null nor a list


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_run(tmp_path, (0.7,)) / "fold0/config.json"


def write_changed(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def test_what_a_fold_holds(file: Path) -> None:
    write_changed(file, lambda config: config | {"patients": {"S0": "P1"}})
    fold = read_fold(file.parent)
    assert fold.setting == read_results([file.parents[1]]).runs[0].setting
    assert fold.setting.as_dict() == SETTING.as_dict()
    assert fold.split == Split(("T1", "T2"), ("V1",), ("S0",), "draw-0")
    assert fold.test_slides == "S0"
    assert fold.patients == {"S0": "P1"}
    assert (fold.provenance.device, fold.provenance.command) == ("cpu", "hist-train")
    assert fold.provenance.versions["timm"] == "1.0.31"


def test_patients_and_provenance_may_be_absent(file: Path) -> None:
    write_changed(file, lambda config: {k: v for k, v in config.items() if k not in ("patients", "provenance")})
    fold = read_fold(file.parent)
    assert (fold.patients, fold.provenance.date, fold.provenance.versions) == ({}, "", {})


def test_settings_of_a_model_that_does_not_learn(tmp_path: Path) -> None:
    write_run(tmp_path, (0.7,), change=RIDGE)
    [run] = read_results([tmp_path]).runs
    assert (run.model, run.variant, run.method) == ("ridge", None, "ridge")
    assert run.setting.model == RidgeConfig(64, 60)
    assert model_settings(run.setting.model) == {}
    of_hist = settings_of(SETTING)
    names = {*model_settings(SETTING.model), *vars(SETTING.fit)} - {"seed", "select_by"}
    assert run.settings == {key: value for key, value in of_hist.items() if key not in names}
    assert of_hist["seed"] == 42


def refused(file: Path) -> str:
    """The message, which is one line that names the file."""
    with pytest.raises(InputError) as caught:
        read_results([file.parents[3]])
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("key", ENTRIES)
def test_an_entry_is_missing(file: Path, key: str) -> None:
    write_changed(file, lambda config: {k: v for k, v in config.items() if k != key})
    message = refused(file)
    assert f"'{key}'" in message
    assert message.endswith("; it was written by another version, run it anew")


@pytest.mark.parametrize("value", [None, [1], "paper"])
@pytest.mark.parametrize("key", OBJECTS)
def test_an_entry_is_no_object(file: Path, key: str, value: object) -> None:
    write_changed(file, lambda config: config | {key: value})
    assert refused(file).endswith("; it was written by another version, run it anew")


@pytest.mark.parametrize("content", [[], [{}], None, "text", 3])
def test_the_file_holds_no_object(file: Path, content: object) -> None:
    write_changed(file, lambda config: content)
    assert refused(file).endswith("; it was written by another version, run it anew")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"slides": None}, "NoneType"),
        ({"variant": {"name": "full"}}, "'terms'"),
        ({"loop": {"epoch": 3}}, "'epoch'"),
        ({"split": {"train": ["T1"], "val": [], "test": ["S0"], "name": "x"}}, "split x: no slides in val"),
        ({"split": {"train": ["T1"], "val": ["V1"], "test": None, "name": "x"}}, "'test' is None"),
    ],
)
def test_a_value_has_another_form(file: Path, change: dict[str, Any], text: str) -> None:
    write_changed(file, lambda config: config | change)
    message = refused(file)
    assert text in message
    assert message.endswith("; it was written by another version, run it anew")


@pytest.mark.parametrize("content", ["", "{", "{'dataset': 'tiny'}"])
def test_the_file_is_not_json(file: Path, content: str) -> None:
    file.write_text(content)
    assert "not readable" in refused(file)


def test_metrics_of_another_version(file: Path) -> None:
    metrics = file.with_name("metrics.json")
    values = json.loads(metrics.read_text())
    metrics.write_text(json.dumps({k: v for k, v in values.items() if k != "controls"}))
    assert "no 'controls' in it; it was written by another version, run it anew" in refused(metrics)


def test_the_command_ends_with_that_line(file: Path, run_command: Run) -> None:
    write_changed(file, lambda config: config | {"protocol": "paper"})
    code, text = run_command(main, file.parents[3])
    assert code == 2
    assert "it was written by another version" in text
    assert "Traceback" not in text
