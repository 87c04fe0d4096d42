"""Options from dataclasses: what was given, configuration files, choices in the help."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import threading
from importlib.metadata import version
from pathlib import Path

import pytest

from hist_cache.options import UNEXPECTED, CommandOptions, number_lists, option_fields, parse, run
from sweeps.options import SweepOptions
from train.experiments.announcements import check_finetuning
from train.fit.config import SEEDS, FitConfig
from train.models.configs import HistConfig
from train.options import TrainOptions


def options(*argv: object) -> TrainOptions:
    return parse(TrainOptions, "hist-train", "", [str(a) for a in argv])


def printed(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        options(*argv)
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_what_was_given_is_known_also_where_it_is_the_default() -> None:
    found = options("--ablation", "full", "--alpha", 0.2, "--fixed-curvature")
    assert found.given == {"ablation", "alpha", "fixed_curvature"}
    assert found.config_values == {"alpha": 0.2, "fixed_curvature": True}
    assert options().given == frozenset()


def test_what_was_given_comes_before_a_datasets_defaults_and_these_before_the_fields_own() -> None:
    preset = {"width": 256, "epochs": 9, "alpha": 0.7}
    found = options("--alpha", 0.2, "--seed", 3)
    model = found.resolve(HistConfig, preset, embedding_width=8, n_genes=4)
    assert (model.alpha, model.width, model.depth) == (0.2, 256, 2)
    fit = found.resolve(FitConfig, preset)
    assert (fit.epochs, fit.seed, fit.lr) == (9, 3, 1e-4)
    assert found.with_values({"alpha": 0.5, "neighbors": 18}).given_values() == {
        "alpha": 0.5, "neighbors": 18, "seed": 3
    }  # fmt: skip


def test_printed_options_are_read_back_as_they_were_given(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ("--lr", 0.01, "--n-genes", "50,100", "--fold", 0, "--fixed-curvature", "--dropout", 0)
    text = printed(capsys, *argv, "--print_config")
    (tmp_path / "c.yaml").write_text(text)
    again = options("--config", tmp_path / "c.yaml")
    assert again.given == options(*argv).given
    assert (again.fold, again.n_genes) == (0, "50,100")
    assert again.config_values == {"lr": 0.01, "dropout": 0.0, "fixed_curvature": True}
    check_finetuning(again)
    (tmp_path / "none.yaml").write_text(printed(capsys, "--print_config"))
    assert options("--config", tmp_path / "none.yaml").given == frozenset()
    assert "--print_config" in printed(capsys, "--help")


def test_several_numbers_are_kept_as_they_were_given(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ("--seed", "1,2,3", "--lr", "1e-3,1e-4", "--ensemble", "1,3", "--width", "64", "--nearest", "5, 50")
    found = options(*argv)
    assert found.seed == "1,2,3"
    assert found.config_values == {"lr": "1e-3,1e-4", "ensemble": "1,3", "width": 64, "nearest": "5, 50"}
    (tmp_path / "c.yaml").write_text(printed(capsys, *argv, "--print_config"))
    assert options("--config", tmp_path / "c.yaml").given_values() == found.given_values()


def test_every_number_of_models_training_and_recipes_may_be_several() -> None:
    lists = number_lists(TrainOptions)
    for kind in (kind for _, kind in TrainOptions.config_groups()):
        numbers = {f.name for f in option_fields(kind) if str(f.type) in ("int", "float")}
        assert numbers <= set(lists)
    assert lists["seed"] == (int, SEEDS)
    assert not {"fold", "folds", "jobs", "fixed_curvature", "select_by"} & set(lists)
    assert "seed" not in number_lists(SweepOptions)


def test_the_version_names_what_computes(capsys: pytest.CaptureFixture[str]) -> None:
    versions = re.fullmatch(
        r"hist-cache (\S+|not installed) \(Python (\S+), torch (\S+), timm (\S+)\)\n", printed(capsys, "--version")
    )
    assert versions is not None
    assert versions[2] == platform.python_version()
    assert versions[3] == version("torch")


def test_bash_completes_options_their_choices_and_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    (tmp_path / "completion").write_text(printed(capsys, "--print-completion", "bash"))
    (tmp_path / "runs_of_mine").mkdir()
    (tmp_path / "runs_as_text").write_text("")
    asked = [["--edge-sp"], ["--edge-spots", ""], ["--select-by", "c"], ["--runs", "runs_"]]
    script = "source completion; complete -p hist-train >&2\n" + "".join(
        f"COMPREPLY=(); COMP_WORDS=(hist-train {' '.join(w or chr(39) * 2 for w in words)}); "
        f'COMP_CWORD={len(words)}; _shtab_hist_train; echo "${{COMPREPLY[@]}}"\n'
        for words in asked
    )
    done = subprocess.run([bash, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "hist-train" in done.stderr
    assert done.stdout.splitlines() == ["--edge-spots", "keep drop", "centered_mse", "runs_of_mine"]
    for shell in ("zsh", "tcsh"):
        assert "edge-spots" in printed(capsys, "--print-completion", shell)


def test_a_file_that_names_every_option_as_version_0_1_printed_it(tmp_path: Path) -> None:
    """Null and false there mean what leaving an option out means."""
    (tmp_path / "c.yaml").write_text(
        "dataset: null\ntable: null\nablation: full\nneighbors: '6'\nepochs: null\nwidth: 16\nfixed_curvature: false\n"
        "finetune_lora: false\nlora_layers: null\nlora_rank: 4\nlora_dropout: 0.1\naugment: false\nprecision: null\n"
    )
    found = options("--config", tmp_path / "c.yaml")
    check_finetuning(found)
    assert found.config_values == {"width": 16}
    assert found.resolve(FitConfig, {"epochs": 7}).epochs == 7


def test_a_file_that_can_be_read_once_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("epochs: 3\n"))
    writer.start()
    found = options("--config", tmp_path / "pipe")
    writer.join()
    assert found.config_values == {"epochs": 3}


def test_the_help_has_groups_choices_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(printed(capsys, "--help").split())
    for part in ("--edge-spots {keep,drop}", "--epochs N epochs at most (default: 200)", "model hist:", "fine-tuning:"):
        assert part in text


def test_a_field_may_not_take_the_name_of_a_commands_option(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clashing(SweepOptions):
        """Has a config dataclass with a name that the command has."""

        @classmethod
        def config_groups(cls) -> list[tuple[str, type]]:
            return [("clash", SweepOptions)]

    assert issubclass(Clashing, CommandOptions)
    with pytest.raises(ValueError, match="the command has an option of that name"):
        parse(Clashing, "x", "", [])


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--weight-decay", "-1"], "--weight-decay -1: must be 0 or more"),
        (["--seed", "-1"], "--seed -1: must be from 0 to 4294967295"),
        (["--seed", "9223372036854775808"], "--seed 9223372036854775808: must be from 0 to 4294967295"),
        (["--seed", "9" * 5000], "--seed 9999999999999999999999999999999999999999...: must be a whole number"),
        (["--lr", "nan"], "--lr nan: must be a number"),
        (["--lr", "1e31"], "--lr 1e31: must be above 0, 1e+30 at most"),
        (["--lr", "0"], "--lr 0: must be above 0"),
        (["--epochs", "1e3"], "--epochs 1e3: must be a whole number"),
        (["--epochs", "1_0"], "--epochs 1_0: must be a whole number"),
        (["--epochs", "0"], "--epochs 0: must be 1 or more"),
        (["--epochs", "10000000000"], "--epochs 10000000000: must be 1 or more, 1e+09 at most"),
        (["--dropout", "1"], "--dropout 1: must be 0 or more and below 1"),
        (["--fold", "-1"], "--fold -1: must be 0 or more"),
        (["--edge-spots", "x"], "--edge-spots x: one of keep, drop"),
        (["--cache", ""], "--cache '': give a value or leave the option out"),
        (["--cache", "a\0b"], "--cache 'a\\x00b': has control characters or is not UTF-8"),
        (["--cache", "a\udcff"], "--cache 'a\\udcff': has control characters or is not UTF-8"),
        (["--debug=3"], "--debug: ignored explicit argument '3'"),
        (["--nope"], "unrecognized arguments: --nope (hist-train --help shows all)"),
        (["--epoch", "3"], "unrecognized arguments: --epoch 3 (did you mean --epochs?)"),
        ([""], "unrecognized arguments: (hist-train --help shows all)"),
        (["--widht=3"], "unrecognized arguments: --widht=3 (did you mean --width?)"),
        (["--lr", "1e-3,0"], "--lr 0: must be above 0"),
        (["--lr", "1e-3,"], "--lr '': give a value or leave the option out"),
        (["--seed", "1,b"], "--seed b: must be a whole number"),
        (["--fold", "0,1"], "--fold 0,1: must be a whole number"),
        (["--edge-spots", "kep"], "--edge-spots kep (did you mean keep?): one of keep, drop"),
        (["--lr"], "--lr: expected one argument"),
        (["--config"], "--config: expected one argument"),
    ],
)
def test_a_wrong_option_is_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], says: str) -> None:
    with pytest.raises(SystemExit) as stop:
        options(*argv)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {says}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_what_nobody_expected_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(options: TrainOptions) -> int:
        raise KeyError("x\ny")

    for debug in (False, True):
        assert run(fails, options(), debug) == 1
        text = capsys.readouterr().err
        assert f"error: {UNEXPECTED}: KeyError: 'x\\ny'; --debug shows where, please report it\n" in text
        assert ("Traceback" in text) == debug
