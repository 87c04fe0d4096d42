"""Temporary folders: in use, left by dead processes, of other versions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hist_cache.scratch import UNLOCKED_S, scratch_folder
from tests.commands import REPOSITORY

KILLED = """
import os, signal
from hist_cache.scratch import scratch_folder
with scratch_folder("hist-test-") as folder:
    (folder / "tensors.pt").write_bytes(b"large")
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_lives_as_long_as_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED], env=os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = Path(killed.stdout.strip())
    assert (left / "tensors.pt").exists()
    old, young, other = (tmp_path / name for name in ("hist-test-old", "hist-test-young", "other-x"))
    half_made, half_removed = tmp_path / f".hist-test-{2**22 + 1}-a", tmp_path / f"hist-test-{2**22 + 1}-b"
    for folder in (old, young, other, half_made, half_removed):
        folder.mkdir()
    before = time.time() - UNLOCKED_S - 60
    os.utime(old, (before, before))
    os.utime(other, (before, before))
    with scratch_folder("hist-test-") as first:
        assert {p.name for p in tmp_path.iterdir()} == {first.name, "hist-test-young", "other-x"}
        with scratch_folder("hist-test-") as second:
            assert first.exists()
            assert second != first
        assert not second.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"hist-test-young", "other-x"}
