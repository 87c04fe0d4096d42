"""The journal of a study: killed writers, full disks, damaged lines, locks of the living and of the dead."""

from __future__ import annotations

import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages.journal import JournalFileBackend, JournalStorage

from hist_cache.errors import InputError
from hist_cache.living import began
from sweeps import journal
from sweeps.file_study import JOURNAL
from sweeps.journal import Journal
from sweeps.sampling import set_up_optuna
from sweeps.waiting import StorageLost
from tests.commands import Command
from tests.conftest import stored_version
from tests.fuzzing import fuzz

KILLED = """
import os, signal, sys
from pathlib import Path
from sweeps.journal import Journal
os.chdir(sys.argv[1])
kept = Journal(Path("journal.log"))
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
kept.append_logs([{"op_code": 0, "worker_id": "a", "study_name": "s", "directions": [1]}])
"""
HOST = journal.HOST


def lines(path: Path) -> list[dict[str, object]]:
    return list(Journal(path).read_logs(0))


def test_the_lock_of_a_killed_process_is_removed(
    tmp_path: Path, start_command: Callable[..., Command], caplog: pytest.LogCaptureFixture
) -> None:
    """By a relative path, as with the default --runs."""
    process = start_command(KILLED, tmp_path)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    lock = tmp_path / "journal.log.lock"
    assert lock.is_symlink()
    began_at = time.monotonic()
    assert len(lines(tmp_path / "journal.log")) == 1
    assert time.monotonic() - began_at < 2
    assert not lock.is_symlink()
    assert "removed, its holder is dead" in caplog.text


@pytest.mark.parametrize(
    "holder",
    [
        f"{HOST}.{2**22 + 1}.1.ab",  # no process can have this number
        f"{HOST}.{os.getppid()}.1.ab",  # another process has the number now
        f"{HOST}.{os.getpid()}.1.ab",
        "elsewhere.1.1.ab",
        "journal.log",  # Optuna's, which dangles
        "/absolute/journal.log",
        None,  # a file
    ],
    ids=["no process", "another process", "this process", "elsewhere", "relative", "absolute", "file"],
)
def test_locks_of_the_dead_are_waited_for_shortly(
    holder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NAMELESS_S", "OTHER_HOST_S"):
        monkeypatch.setattr(journal, name, 0.05)
    lock = tmp_path / "journal.log.lock"
    if holder is None:
        lock.touch()
    else:
        lock.symlink_to(holder)
    kept = Journal(tmp_path / "journal.log")
    kept.append_logs([{"op_code": 0}])
    assert list(kept.read_logs(0)) == [{"op_code": 0}]
    assert not lock.is_symlink()
    assert not lock.exists()


def test_the_lock_of_a_living_process_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Journal(tmp_path / "journal.log")
    (tmp_path / "journal.log.lock").symlink_to(f"{HOST}.{os.getppid()}.{began(os.getppid())}.ab")
    monkeypatch.setattr(journal, "SAY_AFTER_S", 0.1)
    monkeypatch.setattr(journal, "WAIT_S", 0.3)
    with pytest.raises(StorageLost, match=rf"held for 0 s by process {os.getppid()}, which lives"):
        kept.append_logs([{"op_code": 0}])
    assert "waiting for the journal's lock" in caplog.text
    assert (tmp_path / "journal.log.lock").is_symlink()


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """No file may be larger: the system writes a part and then fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 1, 7, 20])
def test_a_full_disk_leaves_whole_lines(room: int, tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    kept = Journal(path)
    kept.append_logs([{"op_code": 1}])
    size = path.stat().st_size
    with full_at(size + room), pytest.raises(StorageLost, match=r"cannot be written .*the same command goes on"):
        kept.append_logs([{"op_code": 2}, {"op_code": 3}])
    assert path.stat().st_size == size
    assert not (tmp_path / "journal.log.lock").is_symlink()
    kept.append_logs([{"op_code": 4}])
    assert [entry["op_code"] for entry in lines(path)] == [1, 4]


@pytest.fixture(scope="module")
def old_journal(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (stored_version(tmp_path_factory.mktemp("old")) / "runs/tiny/sweep-tiny" / JOURNAL).read_bytes()


@pytest.mark.fuzz
@fuzz(25)
@given(share=st.floats(0, 1), then_by_optuna=st.booleans())
def test_a_study_survives_a_torn_line(
    share: float, then_by_optuna: bool, old_journal: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Cut at any byte; version 0.1 then wrote another line behind the torn one."""
    set_up_optuna()
    path = tmp_path_factory.mktemp("torn") / JOURNAL
    kept = old_journal[: round(share * len(old_journal))]
    path.write_bytes(kept)
    whole = kept.count(b"\n")
    if then_by_optuna:
        entry = {"op_code": 2, "worker_id": "x", "study_id": 0, "user_attr": {"a": 1}}
        JournalFileBackend(str(path)).append_logs([entry, entry] if whole else [])
    storage = JournalStorage(Journal(path))
    names = [s.study_name for s in storage.get_all_studies()]
    assert len(lines(path)) == whole + (2 if then_by_optuna and whole else 0)
    study = optuna.create_study(storage=storage, study_name="another")
    study.ask()
    again = JournalStorage(Journal(path))
    assert [s.study_name for s in again.get_all_studies()] == [*names, "another"]


def test_what_is_cut_off_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "journal.log"
    path.write_bytes(b'{"op_code":1}\n{"op_c')
    with caplog.at_level(logging.WARNING):
        assert lines(path) == [{"op_code": 1}]
    assert "cut off its last 6 bytes" in caplog.text
    caplog.clear()
    path.write_bytes(b'{"op_code":1}\n' + b"\0" * 5000)
    assert lines(path) == [{"op_code": 1}]
    assert "cut off its last 5000 bytes" in caplog.text


@pytest.mark.parametrize("damage", [b"{}\n", b"[1]\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"null\n"])
def test_a_damaged_line_is_named(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    path.write_bytes(b'{"op_code":1}\n' + damage + b'{"op_code":1}\n')
    with pytest.raises(InputError, match=r"journal.log: line 2 is damaged; restore it, or move it away"):
        Journal(path)
