"""Whether our packages are still those that were installed: `extract` and `train` are names that others use too.

Two distributions may install a package of the same name into the same folder. The files of the one that came last then
replace those of the other without a word. What `pip` wrote of our files says which of them are no longer ours.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from hist_cache.errors import HistError

OUR_RECORD = "hist_cache-*.dist-info/RECORD"
ADVICE = "install hist-cache in an environment of its own"


def check_installed(home: Path, packages: tuple[str, ...]) -> None:
    """Check the files of packages against what was installed; a source folder has no such list.

    Args:
        home: The folder that holds the packages.
        packages: Their names.

    Raises:
        HistError: A file is missing, or is that of another distribution, which the message names.
    """
    for record in home.glob(OUR_RECORD):
        for name, n_bytes in recorded_files(record):
            if name.split("/")[0] in packages and name.endswith(".py"):
                _check_file(home, name, n_bytes, record)


def recorded_files(record: Path) -> Iterator[tuple[str, str]]:
    """Names and sizes in bytes, as texts, of the files that a RECORD lists."""
    try:
        with record.open(encoding="utf-8", newline="") as file:
            yield from ((row[0], row[2]) for row in csv.reader(file) if len(row) == 3)
    except (OSError, ValueError, csv.Error):
        return  # what cannot be read proves nothing


def _check_file(home: Path, name: str, n_bytes: str, ours: Path) -> None:
    file = home / name
    try:
        if str(file.stat().st_size) == n_bytes:
            return
    except FileNotFoundError:
        raise HistError(
            f"{file}: missing, perhaps uninstalled with another package of that name; install hist-cache again, with "
            "--force-reinstall"
        ) from None
    others = [record for record in home.glob("*.dist-info/RECORD") if record.parent != ours.parent]
    for other in others:
        if name in dict(recorded_files(other)):
            title = other.parent.name.removesuffix(".dist-info").replace("-", " ")
            raise HistError(f"{file}: overwritten by the distribution {title}, which has the same name; {ADVICE}")


def check_origin(home: Path, package: str, file: str | None) -> None:
    """Check that an imported package is ours.

    Args:
        home: The folder that holds our packages.
        package: Its name.
        file: Where it was imported from.

    Raises:
        HistError: It was imported from elsewhere.
    """
    if file is None or Path(file).parent.resolve() != (home / package).resolve():
        raise HistError(
            f"the module {package!r} was imported from {file or 'elsewhere'} before hist-cache's package of that name; "
            "start Python anew and import hist_cache first, or rename that file"
        )
