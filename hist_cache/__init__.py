"""What extraction, training and sweeps share: slides, spots and rings, gene panels, splits and the HDF5 cache.

In a notebook, `open_cache(path)` reads embeddings, `load_run(path)` reads a trained run, and its `model()` predicts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hist_cache.cache import Cache, open_cache
    from hist_cache.cached_slide import CachedSlide
    from hist_cache.runs import Fold, Run, RunModel, load_run

__all__ = ["Cache", "CachedSlide", "Fold", "Run", "RunModel", "load_run", "open_cache"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, because commands that only print their help need none of them."""
    if name not in __all__:
        raise AttributeError(f"module 'hist_cache' has no attribute {name!r}")
    from hist_cache import cache, runs

    return getattr(cache if hasattr(cache, name) else runs, name)


def __dir__() -> list[str]:
    """List the public names, also those that are not imported yet, and what every module has."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
