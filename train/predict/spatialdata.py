"""A predicted slide as a SpatialData store (.zarr): its picture, its spots as circles, and their table.

All elements share the coordinate system `global`, whose unit is the level-0 px. napari-spatialdata, spatialdata-plot
and squidpy open it. The package spatialdata is an extra, as it brings Dask and numba and much else with it.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hist_cache.errors import InputError
from hist_cache.extras import require
from hist_cache.files import write_error
from train.predict.predicted import SlidePicture, spot_diameter, stored_picture

if TYPE_CHECKING:
    import anndata

log = logging.getLogger(__name__)

IMAGE_ELEMENT, SPOTS_ELEMENT, TABLE_ELEMENT = "image", "spots", "table"
REGION_KEY, INSTANCE_KEY = "region", "spot"  # columns of obs: the element that a row is of, and the name of its circle
ZARR_FILES = ("zarr.json", ".zgroup")  # a folder with one of them is a Zarr store, of format 3 or 2


def write_spatialdata(path: Path, table: anndata.AnnData, picture: SlidePicture | None = None) -> Path:
    """Write a SpatialData store; one that is there already is replaced when the new one is complete.

    Args:
        path: of the store, which is a folder.
        table: of one slide; all of it is read into memory.
        picture: of the whole slide (default: the small one of the table).

    Returns:
        The store.

    Raises:
        InputError: spatialdata is not installed, or there is a folder that is no Zarr store.
        WriteError: The store cannot be written.
    """
    store = _elements(path, table, picture or stored_picture(table))
    if path.exists() and not any((path / name).is_file() for name in ZARR_FILES):
        raise InputError(f"{path}: is there and no Zarr store; remove it or give another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", suffix=".partial", dir=path.parent) as aside:
            store.write(Path(aside) / path.name)
            if path.exists():
                path.rename(Path(aside) / "replaced")
            (Path(aside) / path.name).rename(path)
    except OSError as error:
        raise write_error(error, path.parent) from error
    log.info(f"{path}: {table.n_obs:,} spots, {table.n_vars:,} genes")
    return path


def _elements(path: Path, table: anndata.AnnData, picture: SlidePicture) -> Any:
    """The `SpatialData` object: an image and circles with their scales to level-0 px, and the table of the circles."""
    try:
        from spatialdata import SpatialData
        from spatialdata.models import Image2DModel, ShapesModel, TableModel
        from spatialdata.transformations import Identity, Scale
    except ImportError as error:
        raise InputError(
            f"{path}: the package spatialdata, which writes it, is not installed; pip install 'hist-cache[spatialdata]'"
        ) from error
    import anndata

    image = Image2DModel.parse(
        np.moveaxis(picture.pixels, 2, 0),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations={"global": Scale([picture.downsample, picture.downsample], axes=("x", "y"))},
    )
    circles = ShapesModel.parse(
        np.asarray(table.obsm["spatial"], dtype=np.float64),
        geometry=0,  # points, whose radius makes circles of them
        radius=spot_diameter(table) / 2,
        index=table.obs_names.astype(str),
        transformations={"global": Identity()},
    )
    obs = table.obs.assign(**{REGION_KEY: SPOTS_ELEMENT, INSTANCE_KEY: table.obs_names.astype(str)})
    obs[REGION_KEY] = obs[REGION_KEY].astype("category")
    of_spots = anndata.AnnData(
        X=np.asarray(table.X[:]),
        obs=obs,
        var=table.var,
        obsm=dict(table.obsm),
        layers=dict(table.layers),
        uns={key: value for key, value in table.uns.items() if key != "spatial"},  # its picture is the image
    )
    annotation = TableModel.parse(of_spots, region=SPOTS_ELEMENT, region_key=REGION_KEY, instance_key=INSTANCE_KEY)
    return SpatialData(
        images={IMAGE_ELEMENT: image}, shapes={SPOTS_ELEMENT: circles}, tables={TABLE_ELEMENT: annotation}
    )


def check_spatialdata() -> None:
    """`InputError` where the package that writes stores is not installed, before anything is computed."""
    require("spatialdata", "spatialdata", "--spatialdata")
