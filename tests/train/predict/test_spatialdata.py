"""Without the package, one line says what to install; what it writes is tested in tests/scverse/."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hist_cache.errors import InputError
from tests.train.predict.predicted_tables import predicted_table
from train.predict.spatialdata import write_spatialdata


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    with pytest.raises(InputError) as error:
        write_spatialdata(tmp_path / "SLIDE1.zarr", predicted_table(2, 2))
    assert str(error.value).endswith("is not installed; pip install 'hist-cache[spatialdata]'")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
