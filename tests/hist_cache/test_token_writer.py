"""Token files are complete or not there, and keep what they had."""

from pathlib import Path

import numpy as np
import pytest

from hist_cache.errors import HistError
from hist_cache.token_files import Tokens
from hist_cache.token_writer import write_tokens
from hist_cache.verify import verify_tokens
from tests.hist_cache.test_token_files import FINGERPRINT, SHAPE, folder, values, write


def test_more_niches_keep_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / folder(tmp_path).name / "S.tokens13.h5"
    write(path, {"spot": values(5), "niche/6": values(5, 1)})
    write(path, {"niche/18": values(5, 2)})
    assert verify_tokens(path) == []
    with Tokens(path) as tokens:
        assert tokens.sizes == [6, 18]
        for seed, name in enumerate(("spot", "niche/6", "niche/18")):
            np.testing.assert_array_equal(tokens.read(name, range(5)), values(5, seed))


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    path = tmp_path / "S.tokens13.h5"
    with (
        pytest.raises(HistError, match="spot: 3 of 5 crops were not written"),
        write_tokens(path, ["spot"], list("abcde"), SHAPE, FINGERPRINT, {"block": 13}) as writer,
    ):
        writer.put("spot", np.array([4, 0]), values(2))
    with (
        pytest.raises(HistError, match="tokens of"),
        write_tokens(path, ["spot"], list("abcde"), SHAPE, FINGERPRINT, {"block": 13}) as writer,
    ):
        writer.put("spot", np.array([4, 0]), values(2).astype(np.float32))
    assert list(tmp_path.iterdir()) == []
