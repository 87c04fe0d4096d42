"""The program of `hist_cache.first_reading`: it reads what a request names, and answers when that is done.

An error in Python is not reported: whoever reads the file next meets it again, and can say what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import h5py


def main(memory: str) -> Callable[[tuple[str, list[str], bool]], None]:
    """Return what reads the parts of a file.

    Args:
        memory: Bytes that this process may take; an array that needs more than a quarter of them is not read.
    """

    def read(item: h5py.Group | h5py.Dataset, values: bool, seen: set[int]) -> None:
        address = h5py.h5o.get_info(item.id).addr
        if address in seen:
            return
        seen.add(address)
        dict(item.attrs)
        if isinstance(item, h5py.Group):
            for key in item:
                if isinstance(item.get(key, getlink=True), h5py.HardLink):
                    read(item[key], values, seen)
        elif values and not (item.is_virtual or item.external) and item.size and item.nbytes < int(memory) / 4:
            item[...]

    def respond(request: tuple[str, list[str], bool]) -> None:
        path, parts, values = request
        with suppress(Exception), h5py.File(path, "r", locking=False) as file:
            for part in parts:
                if part in file and isinstance(file.get(part, getlink=True), h5py.HardLink):
                    read(file[part], values, set())

    return respond
