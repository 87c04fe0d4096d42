"""What both phases share: slides on disk, spots and niches, panels, splits, the HDF5 cache.

In a notebook: `open_cache(path)` and `load_run(path)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hist_cache.cache import Cache, CachedSlide, open_cache
    from hist_cache.runs import Run, load_run

__all__ = ["Cache", "CachedSlide", "Run", "load_run", "open_cache"]


def __getattr__(name: str) -> Any:
    """Import on first use: commands that only print their help need none of it."""
    if name not in __all__:
        raise AttributeError(f"module 'hist_cache' has no attribute {name!r}")
    from hist_cache import cache, runs

    return getattr(cache, name, None) or getattr(runs, name)
