"""Arrays in files that all worker processes of a machine map into memory: one copy, however many workers there are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hist_cache.files import atomic_write

if TYPE_CHECKING:  # `--help` does without numpy
    import numpy as np

    from hist_cache.executor import Shared


class SharedFiles:
    """Writes arrays, each key's once, to a subfolder of a folder.

    Args:
        folder: Of this run alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def provide(self, shared: Shared) -> Path:
        """Return the folder with the arrays, which has the name of their key; they are written if they are not there.

        Raises:
            WriteError: There is no room.
        """
        import numpy as np

        folder = self._folder / shared.key
        if not folder.exists():
            for name, array in shared.make().items():
                with atomic_write(folder / f"{name}.npy") as partial_path, partial_path.open("wb") as opened:
                    np.save(opened, array, allow_pickle=False)
        return folder


def map_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Map the arrays of a folder into memory, by name.

    What a process writes to them is a copy of its own. Pages that are read-only would be no protection: torch writes to
    them nevertheless, and that kills the process.
    """
    import numpy as np

    return {file.stem: np.load(file, mmap_mode="c") for file in sorted(folder.glob("*.npy"))}
