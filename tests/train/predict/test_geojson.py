"""Spots for QuPath and as CSV: what other readers find in the files, and that memory stays flat."""

from __future__ import annotations

import json
import tracemalloc
import uuid
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from hist_cache.errors import InputError
from tests.train.predict.predicted_tables import DIAMETER, UM_PER_PX, predicted_table
from train.predict import predicted
from train.predict.geojson import MEASUREMENTS, VERTICES, write_geojson, write_spot_table

GENES = ["GENE3", "GENE1"]


def check_geojson(value: Any) -> None:
    """RFC 7946: sections 3.1.6 (linear rings), 3.2 (features), 3.3 (collections); for polygons alone."""
    assert value["type"] == "FeatureCollection"
    assert isinstance(value["features"], list)
    for feature in value["features"]:
        assert feature["type"] == "Feature"
        assert {"geometry", "properties"} <= feature.keys()
        assert isinstance(feature["properties"], dict)
        assert isinstance(feature.get("id", ""), str | int | float)
        assert not {"coordinates", "geometries", "features"} & feature.keys()
        assert feature["geometry"]["type"] == "Polygon"
        for ring in feature["geometry"]["coordinates"]:
            assert len(ring) >= 4
            assert ring[0] == ring[-1]
            assert all(len(position) in (2, 3) for position in ring)
            x, y = np.array(ring, dtype=float).T
            assert np.isfinite([x, y]).all()
            assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0  # counterclockwise


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@pytest.fixture(scope="module")
def table() -> anndata.AnnData:
    return predicted_table(distance=True, disagreement=True)


def test_geojson(table: anndata.AnnData, tmp_path: Path) -> None:
    text = write_geojson(tmp_path / "SLIDE1.geojson", table, GENES).read_text()
    value = json.loads(text, parse_constant=no_constant)
    check_geojson(value)
    assert len(value["features"]) == table.n_obs
    for i, feature in enumerate(value["features"]):
        properties = feature["properties"]
        assert properties["objectType"] == "detection"
        assert properties["name"] == table.obs_names[i]
        (ring,) = feature["geometry"]["coordinates"]
        corners = np.array(ring[:-1])
        assert len(corners) == VERTICES
        np.testing.assert_allclose(corners.mean(0), table.obsm["spatial"][i], atol=0.02)
        np.testing.assert_allclose(np.hypot(*(corners - table.obsm["spatial"][i]).T), DIAMETER / 2, atol=0.02)
        measured = properties["measurements"]
        assert all(type(number) in (int, float) for number in measured.values())  # QuPath takes no others
        assert list(measured) == [*MEASUREMENTS.values(), *GENES]
        np.testing.assert_allclose([measured[g] for g in GENES], table[i, GENES].X[0], rtol=1e-4)
        assert measured["Distance to the training data"] == pytest.approx(table.obs["distance"].iloc[i], rel=1e-4)
        assert measured["Out of distribution (1: yes)"] == table.obs["out_of_distribution"].iloc[i]
    ids = [feature["id"] for feature in value["features"]]
    assert len({uuid.UUID(name) for name in ids}) == table.n_obs
    assert text == write_geojson(tmp_path / "again.geojson", table, GENES).read_text()


def test_where_qupath_crops_the_slide(table: anndata.AnnData, tmp_path: Path) -> None:
    features = json.loads(write_geojson(tmp_path / "a.geojson", table, GENES, (150.0, 40.0)).read_text())["features"]
    (ring,) = features[3]["geometry"]["coordinates"]
    np.testing.assert_allclose(np.mean(ring[:-1], axis=0), table.obsm["spatial"][3] - (150, 40), atol=0.02)


def test_csv(table: anndata.AnnData, tmp_path: Path) -> None:
    read = pd.read_csv(write_spot_table(tmp_path / "SLIDE1.csv", table, GENES), index_col="spot")
    assert read.index.tolist() == table.obs_names.tolist()
    np.testing.assert_allclose(read[["x_px", "y_px"]], table.obsm["spatial"], atol=0.01)
    np.testing.assert_allclose(read[["x_um", "y_um"]], table.obsm["spatial"] * UM_PER_PX, atol=0.01)
    np.testing.assert_allclose(read[GENES], table[:, GENES].X, rtol=1e-4)
    np.testing.assert_allclose(read["distance"], table.obs["distance"], rtol=1e-4)
    np.testing.assert_allclose(read["disagreement"], table.obs["disagreement"], rtol=1e-4)
    assert read["out_of_distribution"].tolist() == table.obs["out_of_distribution"].astype(int).tolist()


def test_without_what_a_table_may_lack(tmp_path: Path) -> None:
    table = predicted_table(2, 3)
    table.X[1, 3] = np.nan
    value = json.loads(write_geojson(tmp_path / "a.geojson", table, GENES).read_text(), parse_constant=no_constant)
    assert [list(f["properties"]["measurements"]) for f in value["features"][:2]] == [GENES, ["GENE1"]]
    read = pd.read_csv(write_spot_table(tmp_path / "a.csv", table, GENES))
    assert list(read) == ["spot", "x_px", "y_px", "x_um", "y_um", *GENES]
    assert np.isnan(read["GENE3"][1])


def test_hostile_names(tmp_path: Path) -> None:
    genes = ['a "quoted", name\nof two lines', "</script>", "Gène µ"]
    table = predicted_table(2, 2, genes=genes, slide='"}')
    table.obs_names = ['"', "a,b", "c\nd", "é"]
    value = json.loads(write_geojson(tmp_path / "a.geojson", table, genes).read_text())
    check_geojson(value)
    assert list(value["features"][0]["properties"]["measurements"]) == genes
    read = pd.read_csv(write_spot_table(tmp_path / "a.csv", table, genes), index_col="spot")
    assert read.index.tolist() == table.obs_names.tolist()
    assert list(read)[4:] == genes


def test_a_gene_that_is_not_there(table: anndata.AnnData, tmp_path: Path) -> None:
    for write in (write_geojson, write_spot_table):
        with pytest.raises(InputError, match="SLIDE1: TP53 is not among its 5 predicted genes"):
            write(tmp_path / "a", table, ["TP53"])
    assert not list(tmp_path.iterdir())


def test_memory_is_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = predicted_table(15, 50, genes=5)
    table.write_h5ad(tmp_path / "SLIDE1.h5ad")
    backed = anndata.read_h5ad(tmp_path / "SLIDE1.h5ad", backed="r")
    monkeypatch.setattr(predicted, "SPOTS_A_BLOCK", 16)
    tracemalloc.start()
    file = write_geojson(tmp_path / "a.geojson", backed, list(table.var_names))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000 < 400_000 < file.stat().st_size
    read = pd.read_csv(write_spot_table(tmp_path / "a.csv", backed, list(table.var_names)))
    np.testing.assert_allclose(read[list(table.var_names)], table.X, rtol=1e-4)
    backed.file.close()
