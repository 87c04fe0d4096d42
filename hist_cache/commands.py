"""Entry points of the console scripts.

`extract` and `train` are ordinary words: the user's own `train.py` may stand first on `sys.path`. The packages are
therefore imported from beside this one, whatever the path says.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path


def claim_packages() -> None:
    """Import extract, train and sweeps from beside this package, whatever else has these names on the path."""
    home = str(Path(__file__).resolve().parent.parent)
    sys.path.insert(0, home)
    try:
        for package in ("extract", "train", "sweeps"):
            import_module(package)
    finally:
        sys.path.remove(home)


def _run(package: str) -> int:
    """Run the command of a package; a Ctrl-C while it is imported ends it without a traceback."""
    try:
        claim_packages()
        code: int = import_module(f"{package}.cli").main()
        return code
    except KeyboardInterrupt:
        return 130


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
