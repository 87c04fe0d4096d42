"""Several workers on one study, and what becomes of those that are killed: with a journal file and with PostgreSQL."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from hist_cache.options import parse
from sweeps.file_study import JOURNAL
from sweeps.opening import open_study
from sweeps.options import SweepOptions
from sweeps.storage import FINISHED, MAX_RETRIES, StudyStorage, retry_of
from sweeps.workers import prepare
from tests.commands import Command
from tests.kills import KILLS, kill_as_it_writes
from tests.sweeps.conftest import SMALL, Server, wait_for

# A heart that is missed sooner than a minute, so that the test does not wait.
SCRIPT = """
import sys, torch
import sweeps.postgres
sweeps.postgres.HEARTBEAT_S, sweeps.postgres.GRACE_S = 1, 3
torch.set_num_threads(1)
from sweeps.cli import main
if __name__ == "__main__":
    sys.exit(main())
"""
# No trial ends before it is stopped.
SLOW_EPOCHS = """
import time
import sweeps.objective
judge = sweeps.objective.TrialFold.judge
sweeps.objective.TrialFold.judge = lambda fold, row: (time.sleep(1), judge(fold, row))
"""
SLOWER_EPOCHS = SLOW_EPOCHS.replace("sleep(1)", "sleep(0.5)")  # a trial can be caught running, and ends soon
Start = Callable[..., Command]
LONG = ("--epochs", 8, "--patience", 8)


@pytest.fixture
def start(start_command: Callable[..., Command], tmp_path: Path) -> Start:
    """Start hist-sweep from a script, which its workers import too."""

    def start(argv: list[str], patches: str = "") -> Command:
        file = tmp_path / "hist-sweep.py"
        file.write_text(patches + SCRIPT)
        return start_command(file.read_text(), *argv, file=file)

    return start


def arguments(cache: Path, runs: Path, *more: object) -> list[str]:
    return [str(a) for a in ("--cache", cache, "--dataset", "tiny", "--runs", runs, *SMALL, *LONG, *more)]


def opened(argv: list[str]) -> StudyStorage:
    plan, _ = prepare(parse(SweepOptions, "hist-sweep", "", argv))
    return open_study(plan)


def running(storage: StudyStorage, pid: int | None = None) -> list[FrozenTrial]:
    found = storage.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [t for t in found if pid is None or t.user_attrs.get("process", "").endswith(f":{pid}")]


def check_whole(storage: StudyStorage, wanted: int) -> None:
    """As many finished trials as were wanted, none twice, none left; the killed ones were tried again."""
    trials = storage.study.get_trials()
    finished = [t for t in trials if t.state in FINISHED]
    assert len(finished) == wanted
    assert {t.state for t in trials} <= {*FINISHED, TrialState.FAIL, TrialState.WAITING}
    assert len({tuple(sorted(t.params.items())) for t in finished}) == wanted
    retried = {retry_of(t): t for t in trials if retry_of(t) is not None}
    for trial in trials:
        given_up = len(trial.system_attrs.get("retry_history", ())) >= MAX_RETRIES
        if trial.state == TrialState.FAIL and trial.params and not given_up:
            # Who is killed while values are drawn leaves some of them: the next worker keeps these and draws the rest.
            assert trial.params.items() <= retried[trial.number].params.items()
    assert len(retried) == len([t for t in trials if retry_of(t) is not None]), "no trial was queued twice"


@pytest.mark.long
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_sweep_killed_again_and_again_loses_nothing(jobs: int, cache: Path, tmp_path: Path, start: Start) -> None:
    argv = arguments(cache, tmp_path / "runs", "--trials", 4, "--jobs", jobs, "--epochs", 6)
    storage = opened(argv)
    folder = storage.plan.folder
    journal = folder / JOURNAL
    text = kill_as_it_writes(lambda: start(argv), lambda: journal.read_bytes().count(b"\n"), 15, KILLS // 2)
    check_whole(storage, 4)
    storage.close()
    assert "On test" in text or "nothing better" in text
    assert all(json.loads(line) for line in journal.read_bytes().splitlines())
    assert [f.name for f in (folder / "workers").glob("*.lock")] == ["study.lock"]
    assert not (folder / "journal.log.lock").is_symlink()


@pytest.mark.slow
def test_two_commands_on_postgres_and_one_is_killed(
    cache: Path, tmp_path: Path, postgres_server: Server, start: Start
) -> None:
    storage_flags = ("--storage", postgres_server.url)
    both = [
        arguments(cache, tmp_path / where, "--trials", 3, "--jobs", 1, "--folds", 1, "--epochs", 3, *storage_flags)
        for where in ("a", "b")
    ]
    storage = opened(both[0])
    one, two = (start(argv, SLOWER_EPOCHS) for argv in both)
    wait_for(lambda: running(storage, one.pid) and running(storage, two.pid))
    one.send_signal(signal.SIGKILL)
    one.wait()
    text, _ = two.communicate(timeout=200)
    assert two.returncode == 0, text
    check_whole(storage, 3)
    assert (next((tmp_path / "b/tiny").glob("sweep-*")) / "report.html").exists()
    storage.close()


@pytest.mark.parametrize("kind", ["journal", pytest.param("postgres", marks=pytest.mark.database)])
def test_many_workers_never_run_too_many_nor_the_same(
    kind: str, cache: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    storage_flags = ("--storage", request.getfixturevalue("postgres")) if kind == "postgres" else ()
    argv = arguments(cache, tmp_path / "runs", "--trials", 9, "--name", f"race-{kind}", *storage_flags)
    plan, _ = prepare(parse(SweepOptions, "hist-sweep", "", argv))
    ran: list[int] = []

    def worker() -> None:
        storage = open_study(plan)
        while storage.run_next(run) is not None:
            pass
        storage.close()

    def run(trial: Any, values: dict[str, Any]) -> float:
        ran.append(trial.number)
        return float(values["alpha"])

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ran) == list(range(9))
    storage = open_study(plan)
    trials = storage.study.get_trials()
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 9
    assert len({tuple(sorted(t.params.items())) for t in trials}) == 9
    storage.close()


def test_ctrl_c_between_asking_and_beginning_leaves_nothing_running(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = opened(arguments(cache, tmp_path / "runs", "--trials", 1))
    ask = optuna.Study.ask

    def interrupted(study: optuna.Study, *more: Any) -> None:
        ask(study, *more)
        raise KeyboardInterrupt

    monkeypatch.setattr(optuna.Study, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        storage.run_next(lambda trial, values: 0.5)
    states = [t.state for t in storage.study.get_trials()]
    assert states == [TrialState.FAIL, TrialState.WAITING]
    storage.close()


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "how"), [(1, signal.SIGINT), (2, signal.SIGTERM)])
def test_stopped_trials_wait_and_the_same_command_goes_on(
    jobs: int, how: signal.Signals, cache: Path, tmp_path: Path, start: Start
) -> None:
    argv = arguments(cache, tmp_path / "runs", "--trials", 2, "--jobs", jobs)
    storage = opened(argv)
    process = start(argv, SLOW_EPOCHS)
    wait_for(lambda: len([t for t in running(storage) if "worker" in t.user_attrs]) == jobs)
    process.send_signal(how)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + how, text
    assert "the same command goes on" in text
    trials = storage.study.get_trials()
    waiting = [t for t in trials if t.state == TrialState.WAITING]
    assert len(waiting) == jobs
    assert not running(storage)
    process = start(argv)
    text, _ = process.communicate(timeout=200)
    assert process.returncode == 0, text
    states = [t.state for t in storage.study.get_trials()]
    assert sum(s in FINISHED for s in states) == 2
    assert states.count(TrialState.FAIL) == jobs
    storage.close()


def test_a_trial_that_kills_its_workers_is_given_up(cache: Path, tmp_path: Path) -> None:
    """Nobody runs the same trial for ever."""
    argv = arguments(cache, tmp_path / "runs", "--trials", 1)
    storage = opened(argv)
    for _ in range(4):
        lost = storage.study.ask()
        lost.set_user_attr("worker", "0" * 32)
        with storage.lock():
            storage.fail_lost_trials()
    states = [t.state for t in storage.study.get_trials()]
    assert states == [TrialState.FAIL] * 4
    storage.close()
