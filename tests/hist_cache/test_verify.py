"""Every changed value in a file of a cache is reported."""

import json
from pathlib import Path

import h5py

from hist_cache.verify import verify_slide, verify_tokens
from tests.hist_cache.test_cache import folder, rewrite, write
from tests.hist_cache.test_token_files import values
from tests.hist_cache.test_token_files import write as write_token_file


def test_verify_finds_any_changed_array(tmp_path: Path) -> None:
    path = folder(tmp_path) / "S.h5"
    write(path)
    assert verify_slide(path) == []
    with h5py.File(path, "r") as file:
        names = json.loads(file.attrs["digests"]).keys() - {"attributes"}
    for name in names:
        write(path)
        rewrite(path)
        with h5py.File(path, "r+") as file:
            first = file[name][0]
            file[name][0] = first + b"x" if isinstance(first, bytes) else first + 1
        assert verify_slide(path) == [f"{name} has other values than when it was written"]


def test_verify_finds_a_flipped_byte_anywhere_in_the_tokens(tmp_path: Path) -> None:
    path = tmp_path / folder(tmp_path).name / "S.tokens13.h5"
    write_token_file(path, {"spot": values(5), "niche/6": values(5, 1)})
    whole = path.read_bytes()
    for name, seed in (("spot", 0), ("niche/6", 1)):
        for crop in (0, 4):
            at = whole.index(values(5, seed)[crop].tobytes()) + 7
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert verify_tokens(path) == [f"{name} has other values than when it was written (crop {crop})"]
    path.write_bytes(whole)
    assert verify_tokens(path) == []
    path.write_bytes(whole[:-500])
    assert "not a readable cache file" in verify_tokens(path)[0]
    path.write_bytes(whole)
    renamed = path.parent.rename(tmp_path / "demo-00000000") / path.name
    assert "its identity is" in verify_tokens(renamed)[0]
