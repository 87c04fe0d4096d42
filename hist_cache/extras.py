"""Packages that only some users need: they are installed with an extra, and named where they are missing."""

from __future__ import annotations

from importlib.util import find_spec

from hist_cache.errors import InputError


def require(module: str, extra: str, what: str) -> None:
    """Check that an optional package can be imported, without importing it.

    Args:
        module: The package, as it is imported.
        extra: The extra of hist-cache that installs it.
        what: Needs it: an option, or what cannot be done.

    Raises:
        InputError: It is not installed.
    """
    if find_spec(module) is None:
        raise InputError(f"{what}: the package {module} is not installed; pip install 'hist-cache[{extra}]'")
