"""What the files of a cache folder state besides their arrays, kept in one file, so that many need not be opened.

The index is `<folder>/index.sqlite`. An entry counts only while size and modification time of its file are those that
it had when it was read, so that the index may be old, incomplete or absent: what it lacks is read from the files. It is
written aside and renamed, never changed in place, and may be deleted at any time.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from hist_cache.errors import WriteError
from hist_cache.files import atomic_write
from hist_cache.fingerprint import Fingerprint, file_stamp
from hist_cache.slide_file import CacheHeader, read_header

log = logging.getLogger(__name__)

INDEX_FILE = "index.sqlite"
LAYOUT = 1  # version of its tables
MIN_NEW = 64  # fewer files are opened sooner than an index is written
NEW_SHARE = 0.1  # of the entries must be new: each writing costs as much as all of them
LOOK_S = 10.0  # between two looks at whether another process has written the index
OWN = ("stamps", "date")  # entries of the provenance that each slide has its own of
SCHEMA_SQL = """
CREATE TABLE texts (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE files (
  name TEXT PRIMARY KEY, bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  spots INTEGER NOT NULL, sizes TEXT NOT NULL, shared INTEGER NOT NULL REFERENCES texts, own TEXT NOT NULL
) WITHOUT ROWID;
"""  # `shared` is what most files of a folder have alike: the common identity, and the provenance without `OWN`

Stamp = tuple[int, int]
Entry = tuple[Stamp, CacheHeader]


class HeaderIndex:
    """The headers of a folder's files, each read once for as long as the file stays as it is.

    Args:
        folder: The cache folder, which need not be there.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / INDEX_FILE
        self._entries: dict[str, Entry] = {}
        self._new: dict[str, Entry] = {}  # those that the index lacks
        self._seen: Stamp | None = None  # of the index, when it was read
        self._next_look = 0.0
        self._lock = threading.Lock()  # a slide is planned while another one is written

    def header(self, path: Path) -> CacheHeader:
        """Return what a file of the folder states, as `read_header` does.

        Raises:
            DamagedCacheError: The file is not readable or not complete, or is not what was written.
            HistError: It cannot be opened, has another format or is another slide's.
        """
        with self._lock:
            return self._header(path)

    def _header(self, path: Path) -> CacheHeader:
        try:
            stamp = file_stamp(path)
        except OSError:
            return read_header(path)  # which says why
        for look in (False, True):
            if look:
                self._look()
            entry = self._entries.get(path.name)
            if entry is not None and entry[0] == stamp:
                return entry[1]
        header = read_header(path)
        with suppress(OSError):  # removed by now
            if file_stamp(path) == stamp:  # not replaced while it was read
                self._entries[path.name] = self._new[path.name] = stamp, header
        return header

    def _look(self) -> None:
        """Read the index, unless it is the one that was read before; not more often than every few seconds."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_S
        with suppress(OSError):
            stamp = file_stamp(self.file)
            if stamp != self._seen:
                self._seen = stamp
                self._entries |= _read(self.file) | self._new

    def save(self) -> None:
        """Write the index, where so much was read that the next command gains by it. It is no error if it cannot be."""
        with self._lock:
            if len(self._new) < max(MIN_NEW, NEW_SHARE * len(self._entries)):
                return
            self._next_look = 0.0
            self._look()  # other processes add to it too
            entries = {name: entry for name, entry in self._entries.items() if (self.file.parent / name).exists()}
            try:
                with atomic_write(self.file) as partial_path:
                    _write(partial_path, entries)
            except (WriteError, sqlite3.Error) as error:
                log.debug(f"{self.file}: not written: {error}")
            else:
                self._new.clear()
                with suppress(OSError):
                    self._seen = file_stamp(self.file)


def _read(file: Path) -> dict[str, Entry]:
    """Read an index; no entries where there is none, or one that is damaged or of another version."""
    if not file.is_file():
        return {}
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            if database.execute("PRAGMA user_version").fetchone() != (LAYOUT,):
                return {}
            texts = {number: json.loads(text) for number, text in database.execute("SELECT id, text FROM texts")}
            rows = database.execute("SELECT name, bytes, mtime_ns, spots, sizes, shared, own FROM files")
            entries = {}
            for name, n_bytes, mtime_ns, spots, sizes, shared, own in rows:
                header = CacheHeader(_joined(texts[shared], json.loads(own)), json.loads(sizes), spots)
                entries[name] = (n_bytes, mtime_ns), header
            return entries
    except (sqlite3.Error, ValueError, LookupError, TypeError, AttributeError) as error:
        log.info(f"{file}: cannot be read ({error}); the files themselves are read, and it is made again")
        return {}


def _write(path: Path, entries: dict[str, Entry]) -> None:
    numbers: dict[str, int] = {}
    rows = []
    for name, ((n_bytes, mtime_ns), header) in sorted(entries.items()):
        shared, own = (json.dumps(part, sort_keys=True) for part in _split(header.fingerprint))
        number = numbers.setdefault(shared, len(numbers))
        rows.append((name, n_bytes, mtime_ns, header.spots, json.dumps(header.sizes), number, own))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode = OFF")  # nobody else sees this file before it is complete
        database.executescript(SCHEMA_SQL)
        database.executemany("INSERT INTO texts VALUES (?, ?)", [(n, text) for text, n in numbers.items()])
        database.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        database.execute(f"PRAGMA user_version = {LAYOUT}")


def _split(fingerprint: Fingerprint) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide a fingerprint into what most files have alike and what is this file's own."""
    own = {name: value for name, value in fingerprint.provenance.items() if name in OWN}
    rest = {name: value for name, value in fingerprint.provenance.items() if name not in OWN}
    return {"common": fingerprint.common, "provenance": rest}, {"slide": fingerprint.slide, "provenance": own}


def _joined(shared: dict[str, Any], own: dict[str, Any]) -> Fingerprint:
    return Fingerprint(shared["common"], own["slide"], shared["provenance"] | own["provenance"])
