"""Which reader reads a source: the first that recognises it by the names of its files."""

from __future__ import annotations

from pathlib import Path

from extract.imports.h5ad_table import H5adReader
from extract.imports.hest_slide import HestSlideReader
from extract.imports.legacy_st import LegacyReader
from extract.imports.options import KIND_OPTIONS
from extract.imports.sample import SampleReader
from extract.imports.space_ranger import SpaceRangerReader
from extract.imports.spatial_data import SpatialDataReader
from extract.imports.visium_hd import VisiumHDReader
from extract.imports.xenium import XeniumReader
from hist_cache.errors import InputError

# The first that recognises a source reads it: what looks like another kind and has more comes before it.
SAMPLE_READERS: tuple[SampleReader, ...] = (
    VisiumHDReader(),
    XeniumReader(),
    SpaceRangerReader(),
    SpatialDataReader(),
    HestSlideReader(),
    H5adReader(),
    LegacyReader(),
)


def find_reader(source: Path, given: frozenset[str] = frozenset()) -> SampleReader:
    """Return the reader of a source.

    Args:
        source: A file or folder.
        given: Names of the options that were given.

    Raises:
        InputError: There is no such file or folder, no reader recognises it, or it has no use for an option.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    reader = next((reader for reader in SAMPLE_READERS if reader.recognises(source)), None)
    if reader is None:
        expected = "; ".join(f"{reader.name}: {reader.expected}" for reader in SAMPLE_READERS)
        raise InputError(f"{source}: no measured slide that is read ({expected}); see docs/data-layout.md")
    if unused := [name for name in KIND_OPTIONS if name in given and name not in reader.uses]:
        raise InputError(f"{source}: --{unused[0]} is not for a source of the kind {reader.name}; leave it out")
    return reader
