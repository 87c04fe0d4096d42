"""Tables that end the process that reads them, or never let it go: one line, and the next table is read."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from hist_cache import first_reading
from hist_cache.child_process import ChildAnswerError, ChildProcess, child_memory
from hist_cache.errors import SlideError
from hist_cache.first_reading import FirstReader
from hist_cache.slides import find_slide
from hist_cache.spots import count_spots, read_spots

BAD_FOR_TINY1 = """
import os, time
def main(memory):
    def respond(request):
        if "TINY1" in request[0]:
            {what}
    return respond
"""


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("os.abort()", "HDF5 ends with SIGABRT; copy or download it again"),
        ("os._exit(3)", "HDF5 ends with code 3; copy"),
        ("time.sleep(60)", "HDF5 does not answer within 1 s"),
    ],
)
def test_a_table_that_hdf5_does_not_survive(
    hest_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, says: str
) -> None:
    reader = FirstReader()
    (tmp_path / "program.py").write_text(BAD_FOR_TINY1.format(what=what))
    monkeypatch.setattr("hist_cache.h5ad.first_reader", lambda: reader)
    monkeypatch.setattr(first_reading, "READER_PROGRAM", tmp_path / "program.py")
    monkeypatch.setattr(first_reading, "READER_PATIENCE_S", 1)
    for reads in (read_spots, count_spots):
        with pytest.raises(SlideError, match=rf"TINY1\.h5ad: {says}"):
            reads(find_slide(hest_root, "TINY1"))
        assert len(read_spots(find_slide(hest_root, "TINY2"))) == 30
    reader.close()


def test_the_process_reads_every_part_and_takes_errors_of_python_for_granted(hest_root: Path, tmp_path: Path) -> None:
    reader = FirstReader()
    (tmp_path / "none.h5").write_bytes(b"no table")
    parts = ("X", "obs", "nothing")
    for file in (hest_root / "st/TINY1.h5ad", tmp_path / "none.h5"):
        assert reader.problem(file, parts) == ""
    assert reader._process is not None, "still there for the next file"
    reader.close()


def test_a_shape_is_read_without_the_values(tmp_path: Path) -> None:
    """Planning looks at every table, so it must not decompress them; damaged values are found when they are read."""
    with h5py.File(tmp_path / "S.h5ad", "w") as file:
        file.create_dataset("X/data", data=np.arange(1000), chunks=True, compression="gzip")
        place = file["X/data"].id.get_chunk_info(0).byte_offset
    with (tmp_path / "S.h5ad").open("r+b") as raw:
        raw.seek(place)
        raw.write(b"damaged")
    reads = tmp_path / "program.py"
    reads.write_text(
        Path(first_reading.READER_PROGRAM).read_text().replace("suppress(Exception)", "suppress(KeyError)")
    )
    child = ChildProcess(reads, str(1 << 30), memory=child_memory(1 << 30))
    assert child.ask([str(tmp_path / "S.h5ad"), ["X"], False], 60) == b""
    with pytest.raises(ChildAnswerError, match="filter"):
        child.ask([str(tmp_path / "S.h5ad"), ["X"], True], 60)
    child.close()
