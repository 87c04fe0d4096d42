"""A study in a real PostgreSQL: passwords, and a server that is killed, restarted or gone."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hist_cache.errors import InputError
from hist_cache.options import parse
from sweeps import database, postgres
from sweeps.cli import main
from sweeps.database import RetryingStorage, read_url
from sweeps.opening import check_storage, open_study
from sweeps.options import SweepOptions
from sweeps.study import StudyPlan
from sweeps.waiting import StorageLost
from sweeps.workers import prepare
from tests.sweeps.conftest import SMALL, Server

Run = Callable[..., tuple[int, str]]


@pytest.mark.parametrize("name", database.OPERATIONS)
def test_every_operation_is_tried_again(name: str) -> None:
    assert getattr(RetryingStorage, name) is not getattr(RetryingStorage.__mro__[1], name)


@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("postgresql://me:secret@h/d", "secret"),
        ("postgresql://me:s%40cret%20%2F@h:5/d", "s@cret /"),
        ("postgresql://h/d?user=me&password=se%26cret", "se&cret"),
        ("postgres://me@h/d?pass%77ord=secret", "secret"),
    ],
)
def test_passwords_are_taken_out_of_urls(url: str, password: str) -> None:
    parsed, secrets = read_url(url)
    assert secrets == {"password": password}
    assert "cret" not in parsed.render_as_string(hide_password=False)
    assert "cret" not in repr(parsed)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:top@secret@h/d",
        "postgresql://me:top secret@h/d",
        "postgresql://me:secret@h:secret/d",
        "postgresql:me:secret@h/d",
        "postgresql://me:***@h/d",
        "postgresql://me@h/d?passwd=secret",
        "postgresql://me@h/d?host=h%3Bpassword%3Dsecret",
    ],
)
def test_urls_that_cannot_be_read_are_refused_without_the_password(url: str) -> None:
    with pytest.raises(InputError) as caught:
        read_url(url)
    assert "secret" not in str(caught.value)
    assert any(text in str(caught.value) for text in ("PGPASSWORD", "not a database's URL", "is no parameter"))


@pytest.fixture
def role(postgres_server: Server) -> Iterator[str]:
    """A user with a password: the URL without it. The server trusts everybody, but libpq still takes it."""
    postgres_server.query("CREATE ROLE keeper LOGIN SUPERUSER PASSWORD 's3cr%t'")
    yield postgres_server.url.replace("sweeper@", "keeper@")
    postgres_server.query("REASSIGN OWNED BY keeper TO sweeper; DROP ROLE keeper")


@pytest.mark.slow
def test_a_password_is_written_nowhere(
    role: str, cache: Path, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    for name in ("full-0/fold0/config.json", "sweep-old/study.json"):  # of an earlier version
        old = tmp_path / "runs/tiny" / name
        old.parent.mkdir(parents=True)
        old.write_text(json.dumps({"provenance": {"command": "hist-sweep --storage postgresql://k:s3cr%25t@h/d"}}))
    url = role.replace("keeper@", "keeper:s3cr%25t@") + "?sslpassword=s3cr%25t"
    argv = ["--cache", cache, "--dataset", "tiny", *SMALL, "--name", "old", "--trials", 1, "--jobs", 1]
    argv += ["--storage", url, "--debug"]
    monkeypatch.setattr("sys.argv", ["hist-sweep", *map(str, argv)])
    assert run_command(main, *argv, "--dry-run")[0] == 0
    code, text = run_command(main, *argv)
    assert code == 0, text
    code, dry = run_command(main, *argv, "--weight-decay", 0.5, "--dry-run")
    assert code == 2, dry
    assert "made with other settings: loop.weight_decay" in dry
    text += dry
    monkeypatch.setattr(postgres, "LOCK_S", 1)  # an error of the server, with --debug
    broken = url.replace("/postgres?", "/missing?")
    code, more = run_command(main, *argv[:-2], broken, "--debug")
    assert code == 2, more
    assert "/missing" in more
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"study.json", "report.html", "best.json", "config.json"} <= {file.name for file in files}
    for file in files:
        assert b"s3cr" not in file.read_bytes(), file
    assert "s3cr" not in text + more + caplog.text
    assert "keeper:***@" in json.loads(next(tmp_path.rglob("study.json")).read_text())["provenance"]["command"]


@pytest.fixture
def plan(cache: Path, tmp_path: Path, postgres_server: Server, monkeypatch: pytest.MonkeyPatch) -> StudyPlan:
    """A study of its own, whose lost workers are noticed soon."""
    monkeypatch.setattr(postgres, "HEARTBEAT_S", 1)
    monkeypatch.setattr(postgres, "GRACE_S", 2)
    monkeypatch.setattr(database, "RETRY_S", 0.1)
    argv = ["--cache", cache, "--dataset", "tiny", "--runs", tmp_path, *SMALL, "--trials", 1, "--storage",
            postgres_server.url, "--name", tmp_path.name]  # fmt: skip
    return prepare(parse(SweepOptions, "hist-sweep", "", [str(a) for a in argv]))[0]


def states(plan: StudyPlan) -> list[TrialState]:
    storage = open_study(plan)
    found = [t.state for t in storage.study.get_trials()]
    storage.close()
    return found


def test_a_restarted_server_is_found_again_and_no_trial_is_lost(
    plan: StudyPlan, postgres_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_study(plan)

    def run(trial: optuna.Trial, values: dict[str, Any]) -> float:
        postgres_server.stop()
        starting = threading.Timer(0.5, postgres_server.start)
        starting.start()
        assert storage.peek() is None  # the display goes on
        trial.report(0.5, 1)  # waits
        trial.set_user_attr("epochs", [1])
        starting.join()
        return 0.5

    with caplog.at_level(logging.WARNING):
        assert storage.run_next(run)
    storage.close()
    assert "does not answer, trying again for 60 s" in caplog.text
    assert "answers again after" in caplog.text
    assert states(plan) == [TrialState.COMPLETE]


def test_a_server_that_is_lost_while_a_trial_is_asked_for(plan: StudyPlan, postgres_server: Server) -> None:
    storage = open_study(plan)
    ask = storage._beat

    def restart(trial: optuna.Trial) -> None:
        storage._beat = ask  # type: ignore[method-assign]
        postgres_server.stop()
        postgres_server.start()
        ask(trial)

    storage._beat = restart  # type: ignore[method-assign]
    assert storage.run_next(lambda trial, values: 0.5) is False  # its lock was lost: another may have had it
    assert storage.run_next(lambda trial, values: 0.5) is True
    storage.close()
    assert states(plan) == [TrialState.FAIL, TrialState.COMPLETE]


def test_a_server_that_stays_away_ends_in_one_line_and_the_trial_is_tried_again(
    plan: StudyPlan, postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_study(plan)
    monkeypatch.setattr(database, "AWAY_S", 0.5)

    def run(trial: optuna.Trial, values: dict[str, Any]) -> float:
        postgres_server.stop()
        trial.report(0.5, 1)
        return 0.5

    try:
        with pytest.raises(StorageLost) as lost:
            storage.run_next(run)
        began = time.monotonic()
        with pytest.raises(StorageLost):
            storage.peek()
        assert time.monotonic() - began < 0.5  # nothing is waited for twice
        with pytest.raises(InputError, match="cannot be reached"):
            check_storage(plan)
    finally:
        postgres_server.start()
    storage.close()
    assert "has not answered for" in str(lost.value)
    assert str(lost.value).endswith(f"go on with: {plan.options.command}")
    again = open_study(plan)
    deadline = time.monotonic() + 30
    while not again.run_next(lambda trial, values: 0.5):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    trials = again.study.get_trials()
    again.close()
    assert [t.state for t in trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert trials[0].params == trials[1].params
    assert trials[1].user_attrs["default"]
