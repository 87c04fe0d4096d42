from __future__ import annotations

from pathlib import Path

import pytest

from hist_cache.errors import InputError
from hist_cache.id_files import read_ids


def test_ids_of_a_file_in_its_order(tmp_path: Path) -> None:
    ids = [f"S{i}" for i in range(20_000, 0, -1)]  # 140 kB: more than one argument of a command may have
    file = tmp_path / "ids.txt"
    file.write_text("# all of them\n\n" + "".join(f"{slide}  # a slide\r\n" for slide in ids))
    assert read_ids(str(file)) == ids


def test_a_list_as_before() -> None:
    assert read_ids("SPA138-141,NCBI563") == ["SPA138", "SPA139", "SPA140", "SPA141", "NCBI563"]
    assert len(read_ids("S1-200000")) == 200_000
    ids = [f"SPA{i}" for i in range(100, 1100)]
    assert read_ids(",".join(ids)) == ids  # longer than the name of a file or a path may be


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no slide ids in it"),
        (b"# none\n\n", "no slide ids in it"),
        (b"A\nB\n\nA\n", "A is in line 1 and in line 4"),
        (b"A\n../B\n", "slide '../B'"),
        (b"\xff\xfe\x00", "ids"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "ids"
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_ids(str(file))
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_ids(str(tmp_path / "ids"))
