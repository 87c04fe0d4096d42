"""Commands on different machines that share a cache encode in one precision."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from extract.shared_precision import VALID_S, forget_decision, shared_precision
from hist_cache.values import Precision


@pytest.fixture
def folders(tmp_path: Path) -> dict[Precision, Path]:
    return {"bf16": tmp_path / "uni-11111111", "fp32": tmp_path / "uni-22222222"}


def test_the_first_decides_for_all(folders: dict[Precision, Path]) -> None:
    assert shared_precision("fp32", folders, decide=False) == "fp32"
    assert not list(folders["bf16"].parent.iterdir())
    assert shared_precision("bf16", folders, decide=True) == "bf16"
    assert shared_precision("fp32", folders, decide=True) == "bf16"
    assert shared_precision("bf16", folders, decide=True) == "bf16"
    [note] = folders["bf16"].parent.glob("*/*.precision")
    long_ago = time.time() - VALID_S - 60
    os.utime(note, (long_ago, long_ago))
    assert shared_precision("fp32", folders, decide=True) == "fp32"


def test_a_cache_that_is_there_decides(folders: dict[Precision, Path], caplog: pytest.LogCaptureFixture) -> None:
    assert shared_precision("bf16", folders, decide=True) == "bf16"
    folders["fp32"].mkdir()
    (folders["fp32"] / "A.h5").touch()
    with caplog.at_level("INFO"):
        assert shared_precision("bf16", folders, decide=True) == "fp32"
    assert f"in fp32, as the cache that is there ({folders['fp32']}); --precision bf16 makes another one" in caplog.text
    forget_decision(folders)
    assert [path.name for path in folders["fp32"].parent.iterdir()] == [folders["fp32"].name]
    folders["bf16"].mkdir()
    (folders["bf16"] / "A.h5").touch()
    assert shared_precision("bf16", folders, decide=True) == "bf16"
