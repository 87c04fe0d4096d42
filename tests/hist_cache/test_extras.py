"""Packages that only some users need are named with the extra that installs them."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable
from typing import Any

import pytest

from hist_cache import extras
from hist_cache.errors import InputError
from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
REQUIRED = re.compile(r'require\("(\w+)", "([\w-]+)"')


def read_database() -> Any:
    from sweeps.database import read_url

    return read_url("postgresql://me@host/studies")


def adapt_encoder() -> Any:
    from extract.encoders.lora import LoraConfig, adapt

    return adapt(None, LoraConfig())  # type: ignore[arg-type]


def finetune_encoder() -> Any:
    from train.experiments.runner import make_finetuner

    return make_finetuner(None, None, [], None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (read_database, "--storage: the package psycopg is not installed; pip install 'hist-cache[sweeps-postgres]'"),
        (adapt_encoder, "LoRA: the package peft is not installed; pip install 'hist-cache[lora]'"),
        (finetune_encoder, "--finetune-lora: the package peft is not installed; pip install 'hist-cache[lora]'"),
    ],
)
def test_a_missing_package_is_one_line(call: Callable[[], Any], line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value) == line


def test_a_module_has_no_adapter_where_peft_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So `hist-extract --tokens-at` needs no extra."""
    from torch import nn

    from extract.encoders.lora import adapted_names

    monkeypatch.setitem(sys.modules, "peft", None)
    assert adapted_names(nn.Linear(2, 2)) == ()


def test_the_extras_that_are_named_install_what_is_missing() -> None:
    optional = PROJECT["optional-dependencies"]
    named = {
        match.groups()
        for package in ("hist_cache", "extract", "train", "sweeps")
        for file in (REPOSITORY / package).rglob("*.py")
        for match in REQUIRED.finditer(file.read_text())
    }
    assert {extra for _, extra in named} >= {"lora", "sweeps-postgres", "spatialdata"}
    for package, extra in named:
        assert any(re.match(rf"{package}\b", requirement) for requirement in optional[extra]), extra
        assert not any(re.match(rf"{package}\b", requirement) for requirement in PROJECT["dependencies"]), package


def test_dev_has_all_extras_that_tests_need() -> None:
    optional = PROJECT["optional-dependencies"]
    own = {
        part for entry in optional["dev"] for part in re.findall(r"[\w-]+", entry) if entry.startswith("hist-cache[")
    }
    apart = {"dev", "spatialdata"}  # has a folder of its own: `make test-scverse`
    assert set(optional) - apart <= own
