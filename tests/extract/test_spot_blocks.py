"""Blocks of spots: each spot in one, compact, kept on disk and taken up again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from extract.spot_blocks import BlockFiles, spot_blocks
from hist_cache.fingerprint import Fingerprint

MADE_FROM = Fingerprint({"encoder": "x"}, {"image": "a" * 64}, {})


@given(arrays(np.float64, st.tuples(st.integers(1, 60), st.just(2)), elements=st.integers(0, 20)), st.integers(1, 9))
def test_each_spot_is_in_one_block_of_at_most_so_many(coords: np.ndarray, largest: int) -> None:
    blocks = spot_blocks(coords, largest)
    assert sorted(np.concatenate(blocks).tolist()) == list(range(len(coords)))
    assert all(1 <= len(block) <= largest for block in blocks)
    assert all(len(block) >= largest // 2 for block in blocks) or len(blocks) == 1
    again = spot_blocks(coords.copy(), largest)
    assert all(np.array_equal(one, other) for one, other in zip(blocks, again, strict=True))


def test_blocks_are_compact() -> None:
    """The boxes around the blocks of a square are together not larger than the square: they do not overlap."""
    coords = np.stack(np.meshgrid(np.arange(64), np.arange(64)), axis=-1).reshape(-1, 2).astype(float)
    sides = [np.ptp(coords[block], axis=0) + 1 for block in spot_blocks(coords, 256)]
    assert sum(a * b for a, b in sides) == 64 * 64
    assert all(a == b == 16 for a, b in sides)


def test_kept_blocks_are_those_of_the_same_slide(tmp_path: Path) -> None:
    blocks = [np.array([0, 2]), np.array([1])]
    files = BlockFiles(tmp_path / "S.h5", MADE_FROM, blocks)
    assert files.load(0) is None
    values = {"spot": np.arange(6, dtype=np.float16).reshape(2, 3)}
    files.save(0, values)
    files.save(1, {"spot": np.ones((1, 3), np.float16)})
    found = list(BlockFiles(tmp_path / "S.h5", MADE_FROM, blocks).read())
    assert [rows.tolist() for rows, _ in found] == [[0, 2], [1]]
    assert np.array_equal(found[0][1]["spot"], values["spot"])
    assert found[0][1]["spot"].dtype == np.float16
    other = Fingerprint({"encoder": "y"}, MADE_FROM.slide, {})
    assert BlockFiles(tmp_path / "S.h5", other, blocks).load(0) is None
    assert BlockFiles(tmp_path / "S.h5", MADE_FROM, [np.array([0]), np.array([1, 2])]).load(0) is None
    files.remove()
    assert not list((tmp_path / ".parts").iterdir())


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_block_is_computed_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    files = BlockFiles(tmp_path / "S.h5", MADE_FROM, [np.arange(50)])
    files.save(0, {"spot": np.random.default_rng(0).normal(size=(50, 8)).astype(np.float16)})
    (path,) = files.folder.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    path.write_bytes(content[: {"cut": len(content) - 30, "flipped": len(content), "empty": 0}[damage]])
    assert files.load(0) is None
    assert "computed again" in caplog.text
