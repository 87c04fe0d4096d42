"""A setting is hashed, written to config.json and read back; what version 0.1 wrote is read too, under its old name."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest

from hist_cache.errors import InputError
from hist_cache.options import option
from tests.conftest import stored_version
from train.experiments.protocols import get_protocol
from train.experiments.setting import Setting, read_setting, without_new_defaults
from train.fit.config import FitConfig
from train.models.configs import HistConfig, RidgeConfig


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored_version(tmp_path_factory.mktemp("stored"))


def later_options(kind: type) -> set[str]:
    return {f.name for f in fields(kind) if f.metadata.get("since")}


LATER = {"model": later_options(HistConfig), "loop": later_options(FitConfig)}
LATER["protocol"] = later_options(type(get_protocol("paper")))


def configs(stored: Path) -> list[Path]:
    return sorted(stored.glob("runs/tiny/*/fold*/config.json"))


def test_stored_configurations_are_read_and_keep_their_names(stored: Path) -> None:
    files = configs(stored)
    assert len(files) == 11
    for file in files:
        values = json.loads(file.read_text())
        setting = read_setting(file, values)
        assert setting.name == file.parents[1].name
        # All that decides numbers is written as before, but for the rule of crops, which is typed now.
        written = json.loads(json.dumps(setting.as_dict()))
        cache = written.pop("cache")
        for entry in ("model", "loop", "protocol"):  # and for options that version 0.1 had not, at their defaults
            later = {name for name in written[entry] if name not in values[entry]}
            assert later == (LATER[entry] if entry != "model" or setting.variant else set())
            written[entry] = {name: value for name, value in written[entry].items() if name not in later}
        assert written == {key: values[key] for key in written} | {"split": values["split_kind"]}
        assert "crop_rule" in cache
        assert Setting.from_dict(json.loads(json.dumps(setting.as_dict())) | {"split_kind": setting.split}) == setting


def test_other_models_are_told_apart(stored: Path) -> None:
    file = configs(stored)[0]
    hist = read_setting(file, json.loads(file.read_text()))
    ridge = replace(hist, model_name="ridge", variant=None, model=RidgeConfig(64, 20))
    assert ridge.name.startswith("ridge-")
    assert ridge.as_dict()["model_name"] == "ridge"
    assert "model_name" not in hist.as_dict()
    again = Setting.from_dict(json.loads(json.dumps(ridge.as_dict())) | {"split_kind": ridge.split})
    assert again == ridge
    longer = replace(ridge, fit=replace(ridge.fit, epochs=77))
    assert longer.name == ridge.name, "ridge has no epochs"
    assert replace(ridge, fit=replace(ridge.fit, seed=1)).name != ridge.name
    assert replace(hist, fit=replace(hist.fit, epochs=77)).name != hist.name


def test_an_option_that_is_added_orphans_no_run(stored: Path) -> None:
    @dataclass(frozen=True)
    class LaterConfig(HistConfig):
        gain: float = option(1.0, "added later", since="0.2")

    file = configs(stored)[0]
    setting = read_setting(file, json.loads(file.read_text()))
    values = without_new_defaults(setting.model)
    assert without_new_defaults(LaterConfig(**values)) == values
    assert replace(setting, model=LaterConfig(**values)).name == setting.name
    assert replace(setting, model=LaterConfig(**values, gain=2.0)).name != setting.name


@pytest.mark.parametrize(
    ("entry", "option", "other"),
    [("fit", "clip_norm", 0.0), ("model", "map_scale", "one"), ("protocol", "niche_profile", "mean_of_logs")],
)
def test_the_new_options_rename_a_run_only_where_they_are_used(
    stored: Path, entry: str, option: str, other: object
) -> None:
    file = configs(stored)[0]
    setting = read_setting(file, json.loads(file.read_text()))
    changed = replace(setting, **{entry: replace(getattr(setting, entry), **{option: other})})
    assert changed.name != setting.name
    again = Setting.from_dict(json.loads(json.dumps(changed.as_dict())) | {"split_kind": changed.split})
    assert again == changed


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": "paper"},
        {"model": None},
        {"loop": {"epoch": 3}},
        {"panel": None},
        {"transform": None},
        {"dataset": 3},
        {"neighbors": None},
        {"variant": {"name": "full"}},
        {"cache": 3},
    ],
)
def test_what_is_no_setting_is_refused_in_one_line(stored: Path, change: dict[str, object]) -> None:
    file = configs(stored)[0]
    with pytest.raises(InputError, match=r"config\.json: not the configuration of a run .* run it anew"):
        read_setting(file, json.loads(file.read_text()) | change)
    with pytest.raises(InputError, match="dataset"):
        read_setting(file, {k: v for k, v in json.loads(file.read_text()).items() if k != "dataset"})


@pytest.mark.parametrize(
    ("change", "says"),
    [({"loop": {"epochs": 0}}, "--epochs 0: must be 1 or more"), ({"model_name": "toy"}, "--model toy: no such model")],
)
def test_values_that_are_refused_name_the_file(stored: Path, change: dict[str, object], says: str) -> None:
    file = configs(stored)[0]
    with pytest.raises(InputError, match=rf"config\.json: {says}"):
        read_setting(file, json.loads(file.read_text()) | change)
