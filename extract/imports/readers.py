"""Which reader reads a source: the first that recognises it by the names of its files."""

from __future__ import annotations

from pathlib import Path

from extract.imports.h5ad_table import H5adReader
from extract.imports.legacy_st import LegacyReader
from extract.imports.sample import SampleReader
from extract.imports.space_ranger import SpaceRangerReader
from hist_cache.errors import InputError

# The first that recognises a source reads it: what looks like another kind and has more comes before it.
SAMPLE_READERS: tuple[SampleReader, ...] = (SpaceRangerReader(), H5adReader(), LegacyReader())


def find_reader(source: Path) -> SampleReader:
    """Return the reader of a source.

    Raises:
        InputError: There is no such file or folder, or no reader recognises it.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    reader = next((reader for reader in SAMPLE_READERS if reader.recognises(source)), None)
    if reader is None:
        expected = "; ".join(f"{reader.name}: {reader.expected}" for reader in SAMPLE_READERS)
        raise InputError(f"{source}: no measured slide that is read ({expected}); see docs/data-layout.md")
    return reader
