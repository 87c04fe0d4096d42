"""Columns of Parquet files of 10x Genomics' programs, whole or batch by batch, as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hist_cache.errors import FileProblemError, SlideError, slide_error
from hist_cache.texts import first_names

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET_ROWS = 500_000


class ParquetError(FileProblemError):
    """A Parquet file cannot be used."""


def parquet_batches(
    slide: str, path: Path, needed: Sequence[str], optional: Sequence[str] = (), rows: int = PARQUET_ROWS
) -> Iterator[dict[str, pa.Array]]:
    """Read columns of a file, some rows at a time.

    Args:
        slide: ID of the slide, for messages.
        path: The file.
        needed: Names of columns.
        optional: Names of columns that the file may lack.
        rows: Number of rows at a time.

    Yields:
        The columns by name.

    Raises:
        SlideError: The file cannot be read, or lacks a column; or pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise SlideError(slide, path, "Parquet files need pyarrow", "pip install 'hist-cache[parquet]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [name for name in needed if name not in names]:
                raise ParquetError(f"no column {first_names(missing)} (it has {first_names(names, 12)})")
            wanted = [*needed, *(name for name in optional if name in names)]
            batches = file.iter_batches(batch_size=rows, columns=wanted)
            while (batch := next(batches, None)) is not None:
                yield dict(zip(batch.schema.names, batch.columns, strict=True))
    except Exception as error:  # pyarrow raises errors of many kinds for a damaged file
        raise slide_error(slide, path, error, "cannot be read") from error


def parquet_columns(slide: str, path: Path, needed: Sequence[str]) -> dict[str, pa.Array]:
    """Read whole columns of a file, as `parquet_batches` does."""
    import pyarrow as pa

    batches = list(parquet_batches(slide, path, needed))
    if not batches:
        raise SlideError(slide, path, "no rows in it")
    return {name: pa.concat_arrays([batch[name] for batch in batches]) for name in needed}
