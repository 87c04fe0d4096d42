"""The SpatialData store, written by us and read back by the package itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hist_cache.errors import InputError
from tests.train.predict.predicted_tables import DIAMETER, DOWNSAMPLE, predicted_table
from train.predict.predicted import SlidePicture
from train.predict.spatialdata import write_spatialdata

spatialdata = pytest.importorskip("spatialdata", reason="run by `make test-scverse`")


def test_the_store_read_back(tmp_path: Path) -> None:
    from spatialdata.transformations import get_transformation

    table = predicted_table(5, 6, truth=True, distance=True, disagreement=True)
    store = write_spatialdata(tmp_path / "SLIDE1.zarr", table)
    assert [p.name for p in tmp_path.iterdir()] == ["SLIDE1.zarr"]
    read = spatialdata.read_zarr(store)
    image, spots, annotation = read.images["image"], read.shapes["spots"], read.tables["table"]
    lowres = table.uns["spatial"]["SLIDE1"]["images"]["lowres"]
    np.testing.assert_array_equal(np.moveaxis(image.compute().to_numpy(), 0, 2), lowres)
    assert image.coords["c"].values.tolist() == ["r", "g", "b"]
    matrix = get_transformation(image, "global").to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(matrix, np.diag([DOWNSAMPLE, DOWNSAMPLE, 1]))
    matrix = get_transformation(spots, "global").to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(matrix, np.eye(3))
    np.testing.assert_allclose(np.stack([spots.geometry.x, spots.geometry.y], axis=1), table.obsm["spatial"])
    assert (spots["radius"] == DIAMETER / 2).all()
    assert spots.index.tolist() == annotation.obs["spot"].tolist() == table.obs_names.tolist()
    link = annotation.uns["spatialdata_attrs"]
    assert (link["region"], link["region_key"], link["instance_key"]) == ("spots", "region", "spot")
    np.testing.assert_array_equal(annotation.X, table.X)
    np.testing.assert_array_equal(annotation.layers["truth"], table.layers["truth"])
    assert annotation.uns["expression"] == "log2(1 + count)"
    np.testing.assert_allclose(annotation.obs["distance"], table.obs["distance"])
    joined, rows = spatialdata.join_spatialelement_table(sdata=read, spatial_element_names="spots", table_name="table")
    assert len(joined["spots"]) == len(rows) == table.n_obs
    # What is cut out of the store by a box in level-0 px is what lies there.
    box = {"min_coordinate": [300, 300], "max_coordinate": [700, 500], "axes": ("x", "y")}
    part = spatialdata.bounding_box_query(read, **box, target_coordinate_system="global")
    x, y = table.obsm["spatial"].T
    inside = (x + DIAMETER / 2 > 300) & (x - DIAMETER / 2 < 700) & (y + DIAMETER / 2 > 300) & (y - DIAMETER / 2 < 500)
    assert set(part.tables["table"].obs["spot"]) == set(table.obs_names[inside])
    assert abs(part.images["image"].shape[2] - 400 / DOWNSAMPLE) <= 1


def test_another_picture_and_a_store_that_is_replaced(tmp_path: Path) -> None:
    picture = SlidePicture(np.zeros((30, 40, 3), dtype=np.uint8), 30.5)
    for n in (2, 3):
        write_spatialdata(tmp_path / "a.zarr", predicted_table(n, n), picture)
    read = spatialdata.read_zarr(tmp_path / "a.zarr")
    assert len(read.shapes["spots"]) == 9
    assert read.images["image"].shape == (3, 30, 40)
    (tmp_path / "b.zarr").mkdir()
    with pytest.raises(InputError, match=r"b\.zarr: is there and no Zarr store"):
        write_spatialdata(tmp_path / "b.zarr", predicted_table(2, 2))
