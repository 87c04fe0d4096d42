"""A SpatialData store (.zarr): a table, the shapes that its rows are of, and the image that lies under them.

The package spatialdata is an extra. A store keeps its image as an array, so it is written as a TIFF file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.imports.element_image import Element, affine, element_size, write_element
from extract.imports.options import ImportOptions
from extract.imports.pitch import (
    VISIUM_PITCH_UM,
    VISIUM_SPOT_UM,
    MeasuredPitch,
    SpotSizes,
    given_sizes,
    measure_pitch,
    sizes_by_pitch,
)
from extract.imports.sample import Sample, sample_name
from hist_cache.errors import InputError, SlideError, kind_and_text
from hist_cache.texts import first_names

STORE_FILES = ("zarr.json", ".zgroup", ".zattrs")
LINK = "spatialdata_attrs"
HD_TABLE = re.compile(r"square_(\d{3})um")
RAW_COUNTS = "the table must hold raw counts, with gene symbols as var_names"


class SpatialDataReader:
    """Reads spots from shapes, on the largest image that shares a coordinate system with them."""

    name = "SpatialData"
    expected = "a .zarr store with a table, shapes and an image"
    uses: tuple[str, ...] = ("pitch", "spot", "bin")

    def recognises(self, source: Path) -> bool:
        """Tell whether it is a Zarr store."""
        return source.is_dir() and any((source / name).is_file() for name in STORE_FILES)

    def read(self, source: Path, options: ImportOptions) -> Sample:
        """Read the store; see `SampleReader`."""
        slide = options.id or sample_name(source)
        store = _open(slide, source)
        name, table = _table(source, store.tables, options)
        region, rows, centers, radius = _shapes(slide, source, store, table)
        image_name, image, matrix = _image(slide, source, store, region)
        coords = centers @ matrix[:2, :2].T + matrix[:2, 2]
        table = table[rows]
        array = _array(table.obs)
        measured = measure_pitch(coords, array)
        radius_px = None if radius is None else radius * float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
        sizes = _sizes(source, name, options, measured, radius_px)
        file = Path(options.image) if options.image else write_element(slide, source, image_name, image, options)
        return Sample(
            name=slide,
            counts=_counts(slide, source, table.X),
            barcodes=[str(v) for v in table.obs_names],
            genes=[str(v) for v in table.var_names],
            gene_ids=[str(v) for v in table.var["gene_ids"]] if "gene_ids" in table.var else None,
            coords=coords,
            array=array,
            image=file,
            notes=(f"table {name!r} on the image {image_name!r}",),
            **sizes,
        )


def _open(slide: str, source: Path) -> Any:
    try:
        import spatialdata
    except ImportError:
        needed = "the package spatialdata, which reads it, is not installed; pip install 'hist-cache[spatialdata]'"
        raise InputError(f"{source}: {needed}") from None
    try:
        return spatialdata.read_zarr(source)
    except Exception as error:  # Zarr and spatialdata raise errors of many kinds for a damaged store
        problem = f"no SpatialData store that can be read ({kind_and_text(error)})"
        raise SlideError(slide, source, problem, "write it again with spatialdata") from error


def _table(source: Path, tables: Any, options: ImportOptions) -> tuple[str, Any]:
    """Return the one table with its name; of Visium HD that of the bins that are asked for."""
    bins = {int(match[1]): name for name in tables if (match := HD_TABLE.fullmatch(name))}
    if bins:
        wanted = min(bins) if options.pseudo_spots is not None else int(options.bin)
        if wanted not in bins:
            there = " and ".join(f"{um} um" for um in sorted(bins))
            raise InputError(
                f"{source}: no bins of {wanted} um in it, only of {there}; give --bin or --pseudo-spots 55"
            )
        return bins[wanted], tables[bins[wanted]]
    linked = [name for name, table in tables.items() if LINK in table.uns]
    if len(linked) != 1:
        names = first_names(linked) or "none"
        raise InputError(f"{source}: {len(linked)} tables that belong to shapes ({names}); a store with one is needed")
    return linked[0], tables[linked[0]]


def _shapes(
    slide: str, source: Path, store: Any, table: Any
) -> tuple[Element, NDArray[np.int64], NDArray[np.float64], float | None]:
    """Return the shapes of a table, (N,) its rows that have one, their (N, 2) centres, and the radius of circles."""
    link = table.uns[LINK]
    regions = [link["region"]] if isinstance(link["region"], str) else list(link["region"])
    if len(regions) != 1 or regions[0] not in store.shapes:
        problem = f"its table belongs to {first_names([str(r) for r in regions])}"
        raise SlideError(slide, source, problem, "one element of shapes (circles or polygons) is needed")
    shapes = store.shapes[regions[0]]
    number = {key: i for i, key in enumerate(shapes.index)}
    keys = table.obs[link["instance_key"]].tolist()
    rows = np.array([i for i, key in enumerate(keys) if key in number], dtype=np.int64)
    if not len(rows):
        raise SlideError(slide, source, f"no row of its table is one of the shapes {regions[0]!r}")
    chosen = shapes.geometry.iloc[[number[keys[i]] for i in rows]].centroid
    radius = float(np.median(shapes["radius"])) if "radius" in shapes else None
    return shapes, rows, np.stack([chosen.x, chosen.y], axis=1).astype(np.float64), radius


def _image(slide: str, source: Path, store: Any, shapes: Element) -> tuple[str, Element, NDArray[np.float64]]:
    """Return the largest image that shares a coordinate system with shapes, and the map from these to its px."""
    found = []
    for name, image in store.images.items():
        matrix = affine(shapes, image)
        if matrix is not None:
            width, height = element_size(image)
            found.append((width * height, name, image, matrix))
    if not found:
        raise SlideError(slide, source, "no image that shares a coordinate system with the shapes", "add the image")
    _, name, image, matrix = max(found, key=lambda entry: entry[:2])
    return name, image, matrix


def _sizes(
    source: Path, table: str, options: ImportOptions, measured: MeasuredPitch | None, radius_px: float | None
) -> SpotSizes:
    """Return the sizes of spots and of a px."""
    if match := HD_TABLE.fullmatch(table):
        return sizes_by_pitch("Visium HD", float(match[1]), float(match[1]), measured)
    if sizes := given_sizes(options, measured):
        return sizes
    if measured is not None and measured.is_visium:
        return sizes_by_pitch("Visium", VISIUM_PITCH_UM, VISIUM_SPOT_UM, measured)
    um_per_px = options.um_per_source_px
    if um_per_px is not None and radius_px is not None:
        spot_um = 2 * radius_px * um_per_px
        return sizes_by_pitch("unknown", spot_um if measured is None else measured.px * um_per_px, spot_um, measured)
    needed = "give --pitch and --spot, both in um, or for circles --um-per-px"
    raise InputError(f"{source}: how large are its spots, and how far apart? {needed}")


def _array(obs: Any) -> NDArray[np.int32]:
    """Return (N, 2) array row and column; -1 where they are not whole numbers."""
    unknown = np.full((len(obs), 2), -1, dtype=np.int32)
    if not {"array_row", "array_col"} <= set(obs.columns):
        return unknown
    try:
        values = np.stack([obs["array_row"], obs["array_col"]], axis=1).astype(np.float64)
    except (TypeError, ValueError):
        return unknown
    whole = np.isfinite(values).all() and (values == np.round(values)).all() and (abs(values) < 2**31).all()
    return values.astype(np.int32) if whole else unknown


def _counts(slide: str, source: Path, values: Any) -> Any:
    from scipy.sparse import csr_matrix

    counts = csr_matrix(values)
    data = counts.data
    if not len(data) or not (np.isfinite(data).all() and (data >= 0).all() and (data == np.round(data)).all()):
        raise SlideError(slide, source, "its table holds no raw counts (normalised?)", RAW_COUNTS)
    return counts
