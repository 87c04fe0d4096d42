"""hist-sweep as a whole, on tiny slides."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from optuna.trial import TrialState

import train.cli
from hist_cache import load_run
from hist_cache.errors import InputError
from hist_cache.options import parse
from hist_cache.slide_file import read_fingerprint, read_slide, write_slide
from sweeps.cli import main
from sweeps.objective import fold_data, run_trial
from sweeps.opening import open_study
from sweeps.options import SweepOptions
from sweeps.trials import study_work
from sweeps.workers import prepare, run_trials
from tests.commands import make_quick
from tests.sweeps.conftest import SMALL
from train.options import TrainOptions

Run = Callable[..., tuple[int, str]]
TRIED = ["trial", "state", "pcc@10", "alpha", "curvature", "fixed_curvature", "epochs"]
TWO_RANGES = ("--space", "alpha,curvature,fixed_curvature", "--jobs", 1, "--pruner", "none")


def study_of(runs: Path) -> Path:
    [folder] = (runs / "tiny").glob("sweep-*")
    return folder


def settings(cache: Path, runs: Path, **more: Any) -> SweepOptions:
    """What SMALL is, on one fold."""
    values = {
        "dataset": "tiny", "cache": str(cache), "runs": str(runs), "split": "loso", "width": 8, "depth": 1,
        "batch_size": 16, "jobs": 1, "epochs": 3, "trials": 4, "n_genes": 20, "lr": 1e-3, "fold": 0,
    } | more  # fmt: skip
    return SweepOptions().with_values({name: value for name, value in values.items() if value is not None})


def searched(options: SweepOptions) -> list[tuple[Any, ...]]:
    """The trials of a study, run here and now."""
    plan, workspace = prepare(options)
    storage = open_study(plan)
    run_trials(plan, storage, workspace, torch.device("cpu"))
    storage.close()
    return [(t.number, t.state, t.values, t.params) for t in storage.study.trials]


@pytest.fixture(scope="module")
def done(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a study of 10 trials, the fewest that say what mattered, by the command."""
    runs = tmp_path_factory.mktemp("done") / "runs"
    argv = ("--cache", cache, "--dataset", "tiny", "--runs", runs, "--trials", 10, *TWO_RANGES)
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        code = main([*map(str, argv), *map(str, SMALL)])
    assert code == 0
    return runs


def again(done: Path, cache: Path, tmp_path: Path, run_command: Run, *more: object) -> tuple[int, str, Path]:
    """The same command on a copy of the study."""
    runs = tmp_path / "runs"
    shutil.copytree(done, runs)
    argv = ("--cache", cache, "--dataset", "tiny", "--runs", runs, *TWO_RANGES, *SMALL)
    return *run_command(main, *argv, *more), runs


@pytest.mark.slow
def test_a_study_leaves_what_it_promises(done: Path) -> None:
    folder = study_of(done)
    assert {"journal.log", "study.json", "trials.csv", "best.json", "report.html"} <= {p.name for p in folder.iterdir()}
    trials = pd.read_csv(folder / "trials.csv")
    assert len(trials) == 10
    assert set(trials["state"]) == {"complete"}
    best = json.loads((folder / "best.json").read_text())
    complete = trials[trials["state"] == "complete"]
    assert best["value"] == pytest.approx(complete["pcc@10"].max())
    assert best["value"] >= best["default_value"]  # trial 0 is the default
    assert trials.loc[0, "alpha"] == 0.2
    assert set(best["test"]) in ({"best", "default"}, {"best, which is the default"})
    page = (folder / "report.html").read_text()
    for title in ("History", "Each parameter", "Pairs of parameters", "Importance"):
        assert f"<strong>{title}.</strong>" in page
    assert page.count('<img src="data:image/') == 4
    assert best["command"] in page.replace("&#39;", "'")
    assert "test slides of these train or validate in other folds" in page
    assert not list((folder / "workers").glob("????????*.lock"))


def test_the_printed_command_is_the_run_that_was_tested(done: Path, run_command: Run) -> None:
    best = json.loads((study_of(done) / "best.json").read_text())
    words = shlex.split(best["command"])
    assert words[0] == "hist-train"
    parse(TrainOptions, "hist-train", "", words[1:])
    code, text = run_command(train.cli.main, *words[1:])
    assert code == 0, text
    assert "2 folds, 2 done before, not run again" in text
    assert Path(best["run"]).name in text


@pytest.mark.usefixtures("quick")
def test_a_trials_value_is_what_hist_train_has_on_validation(cache: Path, tmp_path: Path) -> None:
    options = settings(cache, tmp_path, objective="mse", trials=1, epochs=5)
    [(_, _, [value], _)] = searched(options)
    argv = ("--cache", cache, "--dataset", "tiny", "--runs", tmp_path / "t", *SMALL[:4], "--epochs", 5, *SMALL[6:12])
    assert train.cli.main([*map(str, argv), "--split", "loso", "--fold", "0", "--jobs", "1"]) == 0
    [run] = (tmp_path / "t/tiny").iterdir()
    assert load_run(run).folds[0].history["val_mse"].min() == pytest.approx(value, rel=1e-5)


@pytest.mark.slow
def test_a_finished_study_is_shown_and_more_trials_are_added(
    done: Path, cache: Path, tmp_path: Path, run_command: Run
) -> None:
    code, text, runs = again(done, cache, tmp_path, run_command, "--trials", 10)
    assert code == 0, text
    assert "nothing to search" in text
    assert "testing the best" not in text
    before = pd.read_csv(study_of(done) / "trials.csv")
    pd.testing.assert_frame_equal(pd.read_csv(study_of(runs) / "trials.csv")[TRIED], before[TRIED])
    argv = ("--cache", cache, "--dataset", "tiny", "--runs", runs, *TWO_RANGES, *SMALL)
    code, text = run_command(main, *argv, "--trials", 12, "--resume")
    assert code == 0, text
    assert "2 trials, 10 done before" in text
    after = pd.read_csv(study_of(runs) / "trials.csv")
    assert len(after) == 12
    pd.testing.assert_frame_equal(after[TRIED][:10], before[TRIED])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trials(cache: Path, tmp_path: Path) -> None:
    one, two, other = (searched(settings(cache, tmp_path / str(i), seed=s, trials=3)) for i, s in enumerate((1, 1, 2)))
    assert one == two
    assert [t[3] for t in one][1:] != [t[3] for t in other][1:]


@pytest.mark.slow
def test_no_test_spot_is_read_by_trials(cache: Path, tmp_path: Path) -> None:
    """The test slide's embeddings and counts are others: the trials are the same."""
    spoilt = tmp_path / "cache"
    shutil.copytree(cache, spoilt)
    options = settings(cache, tmp_path / "a", panel_from="train", n_genes=10, objective="pcc@10")
    plan, workspace = prepare(options)
    [split] = {job.split for job in plan.jobs(workspace, {})}
    [test] = split.test
    [file] = spoilt.glob(f"tiny/*/{test}.h5")
    slide = read_slide(file)
    slide.embeddings, slide.niches[6] = slide.embeddings[::-1] * 9, slide.niches[6] - 5
    slide.counts.data = slide.counts.data[::-1] * 3
    write_slide(file, slide, read_fingerprint(file))
    clean = searched(options)
    assert searched(settings(spoilt, tmp_path / "b", panel_from="train", n_genes=10, objective="pcc@10")) == clean
    assert all(t[1] == TrialState.COMPLETE for t in clean)

    jobs = plan.jobs(workspace, {})
    data = fold_data(workspace, torch.device("cpu"), jobs[0], jobs)
    assert {data.slides[i] for i in data.slide.tolist()} == {*split.train, *split.val}


def test_several_folds_have_their_own_test_slides_taken_out(cache: Path, tmp_path: Path) -> None:
    options = settings(cache, tmp_path, fold=None)
    plan, workspace = prepare(options)
    jobs = plan.jobs(workspace, {})
    for job in jobs:
        data = fold_data(workspace, torch.device("cpu"), job, jobs)
        assert {data.slides[i] for i in data.slide.tolist()} == {*job.split.train, *job.split.val}


@pytest.mark.slow
def test_a_hopeless_trial_is_pruned_and_counted(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text("[lr]\nlow = 1e-9\nhigh = 1e-2\nlog = true\n")
    options = settings(cache, tmp_path, space=str(file), lr=None, trials=10, epochs=10, objective="mse")
    outcomes = searched(options)
    pruned = [t for t in outcomes if t[1] == TrialState.PRUNED]
    assert pruned
    assert len(outcomes) == 10
    plan, _ = prepare(options)
    trials = open_study(plan).study.trials
    work = study_work(plan, trials)
    assert work.pruned == len(pruned)
    assert 0 < work.by_pruning <= 10 * len(pruned)
    assert work.epochs == sum(sum(t.user_attrs["epochs"]) for t in trials) < 10 * 10


def test_a_trial_that_diverges_is_a_bad_one_not_an_error(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text("[lr]\nlow = 1e28\nhigh = 1e30\nlog = true\n")
    options = settings(cache, tmp_path, space=str(file), lr=None, trials=3)
    trials = searched(options)
    assert [t[1] for t in trials] == [TrialState.PRUNED] * 3  # the default lies outside of this space
    plan, _ = prepare(options)
    assert "diverged" in open_study(plan).study.trials[0].user_attrs["problem"]


def test_other_neighbours_and_panels_in_one_study(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text("[neighbors]\nchoices = [6, 18]\n[n_genes]\nchoices = [12, 20]\n")
    genes = tmp_path / "genes.txt"
    genes.write_text("\n".join(f"GENE{i}" for i in range(20)))
    options = settings(cache, tmp_path, space=str(file), genes=str(genes), n_genes=None, trials=6, epochs=2)
    trials = searched(options)
    assert len({(t[3]["neighbors"], t[3]["n_genes"]) for t in trials}) > 2
    assert all(t[1] in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--neighbors", "6,18"), "--neighbors 6,18: a study has one value of each option"),
        (("--neighbors", "6,18", "--dry-run"), "search it (--space neighbors) or give one"),
        (("--width", "8,16"), "--width 8,16: a study has one value of each option"),
        (("--seed", "1,2"), "--seed 1,2: must be a whole number"),
        (("--device", "cuda:77", "--dry-run"), "--device cuda:77: no "),
        (("--ablation", "all"), "--ablation all: a study has one value of each option; give one"),
        (("--storage", "postgresql://nobody:secret@127.0.0.1:1/none", "--dry-run"), "127.0.0.1:1/none: cannot be"),
        (("--storage", "postgresql://no:top@secret@127.0.0.1/d"), "write @ in a password as %40"),
        (("--storag", "postgresql://no:secret@127.0.0.1/d"), "unrecognized arguments: --storag postgresql://no:***@"),
        (("--resume", "--dry-run"), "--resume: no study tiny-"),
        (("--space", "gamma"), "gamma cannot be searched"),
        (("--space", "neighbors"), "no niches of 36 neighbours; run hist-extract --neighbors 36"),
        (("--trials", 0), "--trials 0: must be 1 or more"),
        (("--objective", "pcc@200"), "a panel of 20 genes has pcc@10, mse, mae"),
        (("--storage", "postgresql://nobody:secret@127.0.0.1:1/none"), "127.0.0.1:1/none: cannot be reached"),
        (("--storage", "sqlite:///study.db"), "give postgresql://USER@HOST/DATABASE with the password in PGPASSWORD"),
        (
            ("--storage", "no:secret@127.0.0.1:1/d"),
            "--storage: not the URL of a PostgreSQL database; give postgresql://",
        ),
        (("--storage", "host=h user=u password=secret"), "--storage: not the URL of a PostgreSQL database"),
        (("--resume",), "--resume: no study tiny-"),
        (("--name", "a/b"), "--name a/b: letters, digits"),
        (("--finetune-lora",), "hist-sweep searches on the cache"),
    ],
)
def test_wrong_input_is_one_clear_line(argv: tuple[object, ...], says: str, cache: Path, run_command: Run) -> None:
    code, text = run_command(main, "--cache", cache, "--dataset", "tiny", *SMALL, *argv)
    assert code == 2, text
    assert says in text
    assert "Traceback" not in text
    assert "secret" not in text


def test_a_range_that_hist_train_refuses(cache: Path, run_command: Run, tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text("[curvature]\nlow = 0.5\nhigh = 50\n")
    code, text = run_command(main, "--cache", cache, "--dataset", "tiny", *SMALL, "--space", "space.toml")
    assert code == 2
    assert "--curvature 50.0: must be from 0.1 to 10" in text


@pytest.mark.parametrize(("model", "name"), [("ridge", "smooth"), ("ridge_tuned", "ridge"), ("knn", "pearson")])
def test_what_the_model_does_not_use_is_not_searched(model: str, name: str, cache: Path, tmp_path: Path) -> None:
    of_hist = dict.fromkeys(("width", "depth", "batch_size", "epochs", "lr"))
    with pytest.raises(InputError, match=f"{name} is no option of --model {model}: give --space"):
        prepare(settings(cache, tmp_path, model=model, space=name, **of_hist))


def test_another_study_of_the_same_name_is_refused(cache: Path, tmp_path: Path, run_command: Run) -> None:
    searched(settings(cache, tmp_path / "runs", name="mine", trials=1))
    argv = ("--cache", cache, "--dataset", "tiny", "--name", "mine", *SMALL[:-2], "--fold", 0, "--trials", 1)
    code, text = run_command(main, *argv, "--weight-decay", 0.5)
    assert code == 2
    assert "made with other settings: loop.weight_decay 0.01 -> 0.5; give another --name" in text
    journal = tmp_path / "runs/tiny/sweep-mine/journal.log"
    torn = journal.read_bytes() + b'{"op_code"'
    journal.write_bytes(torn)
    assert run_command(main, *argv, "--dry-run")[0] == 0
    dry_code, dry_text = run_command(main, *argv, "--weight-decay", 0.5, "--dry-run")
    assert (dry_code, dry_text.splitlines()[-1]) == (2, text.splitlines()[-1])
    assert journal.read_bytes() == torn, "a dry run repairs nothing"


def test_a_dry_run_writes_nothing(cache: Path, tmp_path: Path, run_command: Run) -> None:
    code, text = run_command(main, "--cache", cache, "--dataset", "tiny", *SMALL, "--dry-run")
    assert code == 0, text
    assert "search alpha: 0.01 to 2 (log); default 0.2" in text
    assert not (tmp_path / "runs").exists()


def test_nothing_is_written_by_a_trial(cache: Path, tmp_path: Path) -> None:
    plan, workspace = prepare(settings(cache, tmp_path))
    storage = open_study(plan)
    before = sorted(tmp_path.rglob("*"))
    storage.run_next(lambda trial, values: run_trial(trial, values, plan, workspace, torch.device("cpu")))
    assert sorted(tmp_path.rglob("*")) == before
    storage.close()


def test_the_command_keeps_zeros_and_leaves_out_what_was_not_given(cache: Path, tmp_path: Path) -> None:
    plan, _ = prepare(settings(cache, tmp_path).with_values({"dropout": 0.0, "seed": 0, "fixed_curvature": True}))
    command = plan.command({"depth": 0, "augment": False})
    for words in ("--dropout 0.0", "--seed 0", "--depth 0", "--fixed-curvature"):
        assert words in command
    assert "--augment" not in command
    assert "--beta" not in command


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda lines: [*lines[:3], b"\0" * 9 + b"\n", *lines[3:]],
            "journal.log: line 4 is damaged",
        ),
        (lambda lines: [*lines, b'{"op_code":4}\n'], "journal.log: damaged (KeyError"),
    ],
)
def test_a_damaged_journal_is_one_clear_line(
    damage: Callable[[list[bytes]], list[bytes]], says: str, cache: Path, tmp_path: Path, run_command: Run
) -> None:
    options = settings(cache, tmp_path / "runs", name="mine", trials=1)
    searched(options)
    journal = tmp_path / "runs/tiny/sweep-mine/journal.log"
    journal.write_bytes(b"".join(damage(journal.read_bytes().splitlines(keepends=True))))
    argv = ("--cache", cache, "--dataset", "tiny", "--name", "mine", *SMALL[:-2], "--fold", 0, "--trials", 1)
    for more in ((), ("--dry-run",)):
        code, text = run_command(main, *argv, *more)
        assert code == 2, text
        assert says in text
        assert "Traceback" not in text
