"""Stores that the package itself wrote, imported: where do their spots lie on the image?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy.sparse import csr_matrix

from extract.imports.cli import main
from hist_cache.slides import find_slide
from hist_cache.spots import read_spots
from tests.extract.imports.sources import UM_PER_PX, Section, color, make_section, marks_at

spatialdata = pytest.importorskip("spatialdata", reason="run by `make test-scverse`")
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def section() -> Section:
    return make_section()


def write_store(path: Path, section: Section, *, scales: list[int] | None = None, hexagonal: bool = True) -> None:
    """Circles in um and an image, both with maps to one coordinate system, and a smaller image."""
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Affine, Scale

    rows = section.measured
    turn = np.array([[0.0, -1.0, 9.0], [1.0, 0.0, 4.0], [0.0, 0.0, 1.0]])
    pixels = np.moveaxis(section.pixels, 2, 0)
    to_section = Affine(turn @ np.diag([UM_PER_PX, UM_PER_PX, 1]), input_axes=("x", "y"), output_axes=("x", "y"))
    image = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], scale_factors=scales, transformations={"of": to_section}
    )
    to_small = Scale([8, 8], ("x", "y"))
    small = Image2DModel.parse(pixels[:, ::4, ::4], dims=("c", "y", "x"), transformations={"of": to_small})
    circles = ShapesModel.parse(
        section.coords * UM_PER_PX,
        geometry=0,
        radius=27.5,
        index=np.arange(len(section.coords)) + 100,
        transformations={"of": Affine(turn, input_axes=("x", "y"), output_axes=("x", "y"))},
    )
    obs = pd.DataFrame({"region": "spots", "spot": rows + 100}, index=[section.barcodes[i] for i in rows])
    if hexagonal:
        obs["array_row"], obs["array_col"] = section.array[rows].T
    obs["region"] = obs["region"].astype("category")
    genes = [f"GENE{i}" for i in range(section.counts.shape[1])]
    table = anndata.AnnData(csr_matrix(section.counts[rows]).astype(np.float32), obs, pd.DataFrame(index=genes))
    order = np.random.default_rng(0).permutation(len(rows))
    table = TableModel.parse(table[order].copy(), region="spots", region_key="region", instance_key="spot")
    store = spatialdata.SpatialData(
        images={"he": image, "a_small": small}, shapes={"spots": circles}, tables={"table": table}
    )
    store.write(path)


@pytest.mark.parametrize("scales", [None, [2]])
def test_spots_lie_where_the_transformations_say(
    section: Section, tmp_path: Path, run_command: Run, scales: list[int] | None
) -> None:
    write_store(tmp_path / "P7.zarr", section, scales=scales)
    code, text = run_command(main, tmp_path / "P7.zarr", "--data-root", "data")
    assert code == 0, text
    assert "100% of the spots lie on tissue" in " ".join(text.split())
    slide = find_slide(tmp_path / "data", "P7")
    assert slide.um_per_px == pytest.approx(UM_PER_PX, rel=1e-3)
    assert [slide.image.resolve()] == list((tmp_path / "data/exported_images").glob("P7-*.tif"))
    np.testing.assert_array_equal(tifffile.imread(slide.image), section.pixels)
    spots = read_spots(slide)
    rows = [section.barcodes.index(name) for name in spots.barcodes]
    assert sorted(rows) == section.measured.tolist()
    np.testing.assert_allclose(spots.coords, section.coords[rows], atol=1e-6)
    np.testing.assert_array_equal(spots.counts.toarray(), section.counts[rows])
    np.testing.assert_array_equal(spots.array, section.array[rows])
    assert marks_at(slide.image, np.round(spots.coords)) == [color(i) for i in rows]


def test_circles_that_are_not_visiums(section: Section, tmp_path: Path, run_command: Run) -> None:
    write_store(tmp_path / "P7.zarr", section, hexagonal=False)
    code, text = run_command(main, tmp_path / "P7.zarr", "--data-root", "data")
    assert (code, "give --pitch and --spot" in text) == (2, True)
    code, text = run_command(main, tmp_path / "P7.zarr", "--data-root", "data", "--um-per-px", UM_PER_PX, "--dry-run")
    assert code == 0, text
    assert not (tmp_path / "data").exists()
    assert "spots of 55 um, 99.99" in " ".join(text.split())


def test_folders_that_are_no_stores(tmp_path: Path, run_command: Run) -> None:
    (tmp_path / "P7.zarr").mkdir()
    (tmp_path / "P7.zarr/zarr.json").write_text("no JSON")
    code, text = run_command(main, tmp_path / "P7.zarr", "--data-root", "data")
    assert code == 1
    assert "no SpatialData store that can be read" in text
    spatialdata.SpatialData().write(tmp_path / "empty.zarr")
    code, text = run_command(main, tmp_path / "empty.zarr", "--data-root", "data")
    assert code == 2
    assert "0 tables that belong to shapes (none)" in text
