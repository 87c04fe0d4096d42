"""What needs no spatialdata; stores are read in tests/scverse."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from extract.imports.options import ImportOptions
from extract.imports.readers import find_reader
from hist_cache.errors import InputError


def test_the_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "P7.zarr"
    store.mkdir()
    (store / "zarr.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "spatialdata", None)  # as if it were not installed
    with pytest.raises(InputError) as error:
        find_reader(store).read(store, ImportOptions(source=(str(store),)))
    assert str(error.value) == (
        f"{store}: the package spatialdata, which reads it, is not installed; pip install 'hist-cache[spatialdata]'"
    )
