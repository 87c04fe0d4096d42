"""Leases: one process at a time, taken over from one that is dead or gone, never from one that lives and renews."""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest

import hist_cache.leases
from hist_cache.errors import WriteError
from hist_cache.leases import ENOTSUPP, LEASE_S, Leases, read_holder
from hist_cache.living import began, this_machine


def holder(**values: object) -> str:
    """What the lock file of another process says: this test's own, but for the token."""
    own = {"host": "n1", "machine": this_machine(), "pid": os.getpid(), "began": began(os.getpid()), "token": "other"}
    return json.dumps(own | values)


def put(leases: Leases, text: str, age_s: float = 0.0) -> Path:
    leases.folder.mkdir(exist_ok=True)
    file = leases.file("A")
    file.write_text(text)
    then = time.time() - age_s
    os.utime(file, (then, then))
    return file


@pytest.fixture
def leases(tmp_path: Path) -> Leases:
    return Leases(tmp_path / "locks")


def test_one_holder_at_a_time(leases: Leases) -> None:
    others = Leases(leases.folder)
    lease = leases.take("A")
    assert lease is not None
    assert lease.name == "A"
    assert str(read_holder(leases.file("A"))).startswith(f"process {os.getpid()} on ")
    assert others.is_held("A")
    assert others.take("A") is None
    assert others.take("B") is not None
    leases.release(lease)
    assert others.take("A") is not None
    others.close()
    assert list(leases.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("left", "age_s", "free"),
    [
        (dict(), 0, False),
        (dict(), LEASE_S - 60, False),
        (dict(), LEASE_S + 60, True),  # it lives, but stands still
        (dict(pid=2**30), 0, True),  # dead here: known at once
        (dict(began=1), 0, True),  # another process got its number
        (dict(machine="elsewhere", pid=2**30), 0, False),
        (dict(machine="elsewhere", pid=2**30), LEASE_S - 60, False),
        (dict(machine="elsewhere"), LEASE_S + 60, True),  # the host is gone
        ("", 0, False),  # being created, or of an earlier version
        ("", LEASE_S + 60, True),
        ('{"pid": "x"}', LEASE_S + 60, True),
        ("[1]", 0, False),
    ],
    ids=range(12),
)
def test_whose_lease_is_taken_over(leases: Leases, left: dict[str, Any] | str, age_s: float, free: bool) -> None:
    text = left if isinstance(left, str) else holder(**left)
    file = put(leases, text, age_s)
    assert leases.is_held("A") == (not free)
    lease = leases.take("A")
    assert (lease is not None) == free
    assert free or file.read_text() == text
    leases.close()
    assert file.exists() == (not free)


def test_time_is_that_of_the_file_server(leases: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clock is three hours ahead of this machine's, which says nothing about the age of a lease."""
    put(leases, holder(machine="elsewhere"), -3 * 3600)
    monkeypatch.setattr(leases, "_server_time", lambda: time.time() + 3 * 3600)
    assert leases.take("A") is None
    put(leases, holder(machine="elsewhere"), LEASE_S + 60 - 3 * 3600)
    assert leases.take("A") is not None


def test_a_lease_is_renewed_while_it_is_held(leases: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hist_cache.leases, "RENEW_S", 0.01)
    assert leases.take("A") is not None
    file = leases.file("A")
    os.utime(file, (1, 1))
    deadline = time.monotonic() + 10
    while file.stat().st_mtime == 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    leases.close()


def test_who_stood_still_leaves_the_lease_of_the_next_one_alone(leases: Leases) -> None:
    lease = leases.take("A")
    assert lease is not None
    file = put(leases, holder(), 100)
    before = file.stat().st_mtime_ns
    lease.renew()
    assert file.stat().st_mtime_ns == before
    leases.close()
    assert file.read_text() == holder()


def test_of_two_that_find_a_holder_dead_one_takes_over(leases: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower one moves the lease of the quicker one aside, sees that, and moves it back."""
    file = put(leases, holder(pid=2**30))
    quicker, rename = Leases(leases.folder), Path.rename

    def late(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        assert quicker.take("A") is not None
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    assert leases.take("A") is None
    assert quicker.is_held("A")
    assert list(leases.folder.iterdir()) == [file]
    quicker.close()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, ENOTSUPP])
def test_a_file_system_without_locks_is_said_once(
    leases: Leases, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, "no such thing")

    monkeypatch.setattr(hist_cache.leases.os, "open", refuse)
    with caplog.at_level(logging.WARNING):
        assert None not in [leases.take(name) for name in "ABA"]
    leases.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"{leases.folder}: no locks there ([Errno {number}] no such thing); two commands at once may do the same work "
        "twice"
    ]


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=f"{tmp_path}/file: Not a directory; give a folder that can be written to"):
        Leases(tmp_path / "file/locks").take("A")


def test_leases_of_the_dead_are_removed(leases: Leases) -> None:
    put(leases, holder(machine="elsewhere"), LEASE_S + 60)
    probe = leases.folder / ".now.n1-12-0123abcd"
    probe.touch()
    os.utime(probe, (1, 1))
    lease = leases.take("B")
    leases.remove_left()
    assert lease is not None
    assert list(leases.folder.iterdir()) == [lease.file]
    leases.close()
