"""All options of all commands with values out of range, of another kind, empty, or with odd characters."""

from __future__ import annotations

import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import extract.cli
import extract.options
import sweeps.cli
import train.cli
import train.report.cli
from hist_cache.options import CommandOptions, flag, option_fields
from sweeps.options import SweepOptions
from tests.conftest import TINY_ENCODER
from tests.fuzzing import fuzz, outcome
from train.options import TrainOptions

Main = Callable[[list[str]], int]
NUMBERS = ["0", "-1", "1", "0.5", "1e5", "nan", "inf", "-inf", "1e999", "1e308", "-1e-9", "9223372036854775808",
           "-9223372036854775809", "9" * 5000, "0x10", "1_0", "٣", "1,2", "6,18,36", "1.", "--1"]  # fmt: skip
TEXTS = ["", " ", "null", "x", "/etc/passwd", "../EVIL", "/dev/null", "/", "~", "a/b", "a\0b", "\udcff",
         "\x1b[31m", "A\nB",
         "[red]", "$x_$", "%s", "%", "{}", "{0}", "#1", "é", ",", ",,", "all", "a" * 5000, "TINY1", "full,full",
         "SPA138-SPA99999999999999", "A1-9999999999"]  # fmt: skip
WITHOUT = {"cache", "storage", "download"}  # the fuzzer's own, and what talks to other machines

COMMANDS: list[tuple[Main, type[CommandOptions]]] = [
    (train.cli.main, TrainOptions),
    (sweeps.cli.main, SweepOptions),
    (extract.cli.main, extract.options.ExtractOptions),
    (train.report.cli.main, train.report.cli.ReportOptions),
]


def flags_of(kind: type[CommandOptions]) -> list[str]:
    """The options of a command that take a value."""
    found = []
    for config in (kind, *(config for _, config in kind.config_groups())):
        hints = typing.get_type_hints(config)
        for f in option_fields(config):
            if hints[f.name] is not bool and not f.metadata.get("positional") and f.name not in WITHOUT:
                found.append(flag(f.name))
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_slides: Path) -> Iterator[Path]:
    """Where the commands run; no command may fetch anything."""
    folder = tmp_path_factory.mktemp("options")
    shutil.copytree(tiny_slides, folder / "hest")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


def base(main: Main, cache: Path) -> list[object]:
    """What the command needs besides."""
    if main is extract.cli.main:
        return ["--ids", "TINY1", "--data-root", "hest", "--encoder", TINY_ENCODER, "--random-weights", "--dry-run"]
    if main is train.report.cli.main:
        return ["runs"]
    small = ["--width", 8, "--n-genes", 9, "--split", "loso", "--dry-run"]
    return ["--cache", cache, "--dataset", "tiny", *small]


@st.composite
def words(draw: st.DrawFn) -> tuple[Main, list[str]]:
    main, kind = draw(st.sampled_from(COMMANDS))
    found: list[str] = []
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(flags_of(kind)))
        value = draw(st.one_of(st.sampled_from(NUMBERS), st.sampled_from(TEXTS), st.text(max_size=4)))
        found += [f"{name}={value}"] if draw(st.booleans()) else [name, value]
    if draw(st.integers(0, 9)) == 0:
        found.append(draw(st.sampled_from(["--nope", "-x", "--", "--epochs", "--config", "--resume", "--lora-rank"])))
    return main, found


@pytest.mark.fuzz
@fuzz(150)
@given(words())
def test_any_option(place: Path, cache: Path, command: tuple[Main, list[str]]) -> None:
    main, found = command
    code, _ = outcome(main, *base(main, cache), *found)
    assert main is not train.report.cli.main or code == 2
    assert not (place.parent / "EVIL").exists()


def ranges() -> list[tuple[Main, str]]:
    """Each numeric option of each command."""
    found = []
    for main, kind in COMMANDS:
        for config in (kind, *(config for _, config in kind.config_groups())):
            found += [(main, flag(f.name)) for f in option_fields(config) if f.metadata.get("within")]
    return found


@pytest.mark.parametrize("value", ["nan", "-inf", "-1", "1e400", "1e31", "", "x"])
def test_every_number_is_checked_before_anything_else(value: str) -> None:
    assert len(ranges()) > 40
    for main, name in ranges():
        code, text = outcome(main, f"{name}={value}", *(["runs"] if main is train.report.cli.main else []))
        assert code == 2
        assert text.startswith(f"error: {name} "), text
