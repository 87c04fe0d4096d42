"""The names for notebooks: listed, and imported on first use."""

import subprocess
import sys

import pytest

import hist_cache
import hist_cache.cache
import hist_cache.runs


def test_public_names_are_listed_and_come_from_their_modules() -> None:
    public = ["Cache", "CachedSlide", "Fold", "Run", "RunModel", "load_run", "open_cache"]
    assert [name for name in dir(hist_cache) if not name.startswith("_")] == public
    assert {"__doc__", "__file__", "__path__"} <= set(dir(hist_cache))
    assert all(getattr(hist_cache, name) is not None for name in dir(hist_cache))
    assert hist_cache.open_cache is hist_cache.cache.open_cache
    assert hist_cache.load_run is hist_cache.runs.load_run
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = hist_cache.nothing


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = (
        "import sys, hist_cache; dir(hist_cache); heavy = {'numpy', 'h5py', 'scipy', 'anndata'} & set(sys.modules)\n"
    )
    script += "assert not heavy, heavy\nhist_cache.open_cache"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
