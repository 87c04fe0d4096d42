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


def hist_extract() -> int:
    """Run hist-extract."""
    claim_packages()
    from extract.cli import main

    return main()


def hist_report() -> int:
    """Run hist-report."""
    claim_packages()
    from train.report.cli import main

    return main()


def hist_sweep() -> int:
    """Run hist-sweep."""
    claim_packages()
    from sweeps.cli import main

    return main()


def hist_train() -> int:
    """Run hist-train."""
    claim_packages()
    from train.cli import main

    return main()
