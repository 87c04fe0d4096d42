"""The chain of directories in a TIFF, followed before anything else reads the file, because it may never end."""

from __future__ import annotations

from pathlib import Path

from extract.slides.image import ImageError

MAX_PAGES = 1000
# First bytes -> byte order, where the first offset is, and the bytes of a number of entries, an entry, an offset.
SIGNATURES: dict[bytes, tuple[str, int, int, int, int]] = {
    b"II*\0": ("little", 4, 2, 12, 4),
    b"MM\0*": ("big", 4, 2, 12, 4),
    b"II+\0": ("little", 8, 8, 20, 8),  # BigTIFF
    b"MM\0+": ("big", 8, 8, 20, 8),
}


def check_directories(path: Path) -> None:
    """Check that a file is a TIFF, and that the chain of its directories ends.

    Raises:
        ImageError: It is none, its directories form a loop, or there are more than any slide has.
    """
    with path.open("rb") as file:
        layout = SIGNATURES.get(file.read(4))
        if layout is None:
            raise ImageError("not a TIFF file")
        order, at, count_size, entry_size, offset_size = layout

        def number(position: int, n_bytes: int) -> int:
            file.seek(position)
            return int.from_bytes(file.read(n_bytes), order)  # type: ignore[arg-type]

        end = path.stat().st_size
        directory, seen = number(at, offset_size), set[int]()
        while 0 < directory < end:
            if directory in seen:
                raise ImageError("its directories form a loop")
            seen.add(directory)
            if len(seen) > MAX_PAGES:
                raise ImageError(f"more than {MAX_PAGES:,} pages", "store one RGB picture with its pyramid")
            after = directory + count_size + number(directory, count_size) * entry_size
            directory = number(after, offset_size) if after < end else 0
