"""Entry points of the console scripts.

`extract` and `train` are ordinary words: the user's own `train.py` may stand first on `sys.path`. The packages are
therefore imported from beside this one, whatever the path says.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

CLAIMED = ("extract", "train", "sweeps")


def claim_packages() -> None:
    """Import extract, train and sweeps from beside this package, whatever else has these names on the path.

    Raises:
        HistError: Another distribution has overwritten one of them, or the user's own is imported already.
    """
    from hist_cache.installed import check_installed, check_origin

    home = Path(__file__).resolve().parent.parent
    if not all(package in sys.modules for package in CLAIMED):
        check_installed(home, ("hist_cache", *CLAIMED))
    sys.path.insert(0, str(home))
    try:
        for package in CLAIMED:
            check_origin(home, package, import_module(package).__file__)
    finally:
        sys.path.remove(str(home))


def claimed(module: str) -> Any:
    """Import a module of extract, train or sweeps by name: for what a notebook asks `hist_cache` for.

    Raises:
        HistError: As `claim_packages`.
    """
    claim_packages()
    return import_module(module)


def _run(package: str) -> int:
    """Run the command of a package; a Ctrl-C while it is imported ends it without a traceback."""
    from hist_cache.errors import HistError

    try:
        code: int = claimed(f"{package}.cli").main()
        return code
    except KeyboardInterrupt:
        return 130
    except HistError as error:
        from hist_cache.console import fail

        fail(str(error))
        return error.exit_code


def hist_export() -> int:
    """Run hist-export."""
    return _run("train.export")


def hist_extract() -> int:
    """Run hist-extract."""
    return _run("extract")


def hist_import() -> int:
    """Run hist-import."""
    return _run("extract.imports")


def hist_predict() -> int:
    """Run hist-predict."""
    return _run("train.predict")


def hist_report() -> int:
    """Run hist-report."""
    return _run("train.report")


def hist_sweep() -> int:
    """Run hist-sweep."""
    return _run("sweeps")


def hist_train() -> int:
    """Run hist-train."""
    return _run("train")
