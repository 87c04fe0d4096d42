"""`--config` files of every content: options as they would be typed, or one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hist_cache.config_files import read_config
from hist_cache.errors import InputError
from hist_cache.options import parse
from train.options import TrainOptions

KINDS = {"epochs": int, "lr": float, "cache": str | None, "runs": tuple[str, ...], "dry_run": bool}


def test_what_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 3\nlr: 1e-5\ncache: -x\ndry-run: true\nruns: [a, b]\n# no\n")
    assert read_config(file, KINDS) == ["--epochs=3", "--lr=1e-5", "--cache=-x", "--dry-run", "a", "b"]
    file.write_text("epochs: null\ndry_run: false\n")
    assert read_config(file, KINDS) == []
    file.write_text("")
    assert read_config(file, KINDS) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("- 1", "must hold options and their values"),
        ("text", "must hold options and their values"),
        ("epochs: [1, 2]", "epochs: must be a text or a number"),
        ("epochs: {a: 1}", "epochs: must be a text or a number"),
        ("epochs: 2001-01-01", "epochs: must be a text or a number"),
        ("epochs: true", "epochs: must be a text or a number"),
        ("dry_run: 1", "dry_run: must be true or false"),
        ("runs: [1, 2]", "runs: must be a text or a number"),
        ("epoch: 3", "no option 'epoch' (did you mean epochs?)"),
        ("1: 3", "no option '1'"),
        ("config: c.yaml", "no option 'config'"),
        ("? [1]\n: 2", "not readable as YAML"),
        ("epochs: 2001-99-99", "not readable as YAML"),
        ("a: *b", "not readable as YAML"),
        ("epochs: !!python/object:os.system 1", "not readable as YAML"),
        ("[" * 50_000, "not readable as YAML"),
        ("{", "not readable as YAML"),
        (b"\xff\xfe\xff", "not text in UTF-8"),
        ("x" * 2_000_000, "larger than 1,000,000 characters"),
    ],
)
def test_other_content_is_refused_in_one_line(tmp_path: Path, content: str | bytes, says: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as error:
        read_config(file, KINDS)
    assert str(error.value).startswith(f"--config {file}: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    for file, says in ((tmp_path, "not a file"), (tmp_path / "no", "no such file"), (Path("/dev/zero"), "not a file")):
        with pytest.raises(InputError, match=says):
            read_config(file, KINDS)


def test_what_stands_later_on_the_command_line_holds(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 3\nlr: 1e-5\n")
    found = parse(TrainOptions, "hist-train", "", ["--lr", "2", "--config", str(file), "--epochs", "7"])
    assert found.config_values == {"epochs": 7, "lr": 1e-5}
    found = parse(TrainOptions, "hist-train", "", [f"--config={file}"])
    assert found.config_values == {"epochs": 3, "lr": 1e-5}
