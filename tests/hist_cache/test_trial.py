"""Tables that end the process that reads them, or never let it go: one line, and the next table is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from hist_cache import trial
from hist_cache.errors import SlideError
from hist_cache.slides import find_slide
from hist_cache.spots import read_spots
from hist_cache.trial import TrialReader

BAD_FOR_TINY1 = """
import os, sys, time
for line in sys.stdin:
    if "TINY1" in line:
        {what}
    print("read", flush=True)
"""


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("os.abort()", "HDF5 ends with SIGABRT on it; copy or download it again"),
        ("os._exit(3)", "HDF5 ends with code 3 on it"),
        ("time.sleep(60)", "HDF5 does not come back from it within 1 s"),
    ],
)
def test_a_table_that_hdf5_does_not_survive(
    hest_root: Path, monkeypatch: pytest.MonkeyPatch, what: str, says: str
) -> None:
    reader = TrialReader()
    monkeypatch.setattr("hist_cache.h5ad.trial_reader", lambda: reader)
    monkeypatch.setattr(trial, "TRIAL", BAD_FOR_TINY1.format(what=what))
    monkeypatch.setattr(trial, "TRIAL_S", 1)
    for _ in range(2):
        with pytest.raises(SlideError, match=rf"TINY1\.h5ad: {says}"):
            read_spots(find_slide(hest_root, "TINY1"))
        assert len(read_spots(find_slide(hest_root, "TINY2"))) == 30
    reader.close()


def test_the_process_reads_every_part_and_takes_errors_of_python_for_granted(hest_root: Path, tmp_path: Path) -> None:
    reader = TrialReader()
    (tmp_path / "none.h5").write_bytes(b"no table")
    parts = ("X", "obs", "nothing")
    for file in (hest_root / "st/TINY1.h5ad", tmp_path / "none.h5"):
        assert reader.problem(file, parts) == ""
    assert reader._process is not None, "still there for the next file"
    reader.close()
