"""Arrays that processes share are what was made, whoever writes to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hist_cache.executor import Shared
from hist_cache.shared_arrays import SharedFiles, map_arrays


def test_what_one_process_writes_no_other_sees(tmp_path: Path) -> None:
    files, made = SharedFiles(tmp_path), []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return {"values": np.arange(4.0), "none": np.empty((0, 3))}

    folder = files.provide(Shared("k", make))
    assert files.provide(Shared("k", make)) == folder
    assert len(made) == 1
    own = map_arrays(folder)
    torch.from_numpy(own["values"]).mul_(2)
    np.testing.assert_array_equal(own["values"], [0, 2, 4, 6])
    other = map_arrays(folder)
    np.testing.assert_array_equal(other["values"], np.arange(4.0))
    assert other["none"].shape == (0, 3)
