"""Entry points of the console scripts.

`extract` and `train` are ordinary words: the user's own `train.py` may stand first on `sys.path`. The packages are
therefore imported from beside this one, whatever the path says.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path


def _claim_packages() -> None:
    home = str(Path(__file__).resolve().parent.parent)
    sys.path.insert(0, home)
    try:
        for package in ("extract", "train", "sweeps"):
            import_module(package)
    finally:
        sys.path.remove(home)


def hist_extract() -> int:
    _claim_packages()
    from extract.cli import main

    return main()


def hist_report() -> int:
    _claim_packages()
    from train.report.cli import main

    return main()


def hist_sweep() -> int:
    _claim_packages()
    from sweeps.cli import main

    return main()


def hist_train() -> int:
    _claim_packages()
    from train.cli import main

    return main()
