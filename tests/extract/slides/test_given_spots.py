import logging
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from extract.slides.given_spots import read_coords
from hist_cache.errors import SlideError

SIZE = (1000, 800)
VISIUM = "AAA-1,1,0,0,100.5,200\nCCC-1,0,0,2,100,300\nGGG-1,1,1,1,150,250\n"
HEADER = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("x,y\n10,20\n30.5,40\n", ["spot1", "spot2"]),
        ("y,x\r\n20,10\r\n40,30.5\r\n", ["spot1", "spot2"]),
        ("\ufeffX , Y\n10,20\n\n30.5,40", ["spot1", "spot2"]),
        (",x,y\nb,10,20\na,30.5,40\n", ["b", "a"]),
        ("cell,x,y\nb,10,20\na,30.5,40\n", ["b", "a"]),
        ("x,y,other,barcode\n10,20,0,b\n30.5,40,0,a\n", ["b", "a"]),
        ('id,x,y\n"b,1",10,20\na,30.5,40\n', ["b,1", "a"]),
    ],
)
def test_places_in_csv(tmp_path: Path, text: str, names: list[str]) -> None:
    spots = read_coords("S", write(tmp_path / "a.csv", text), SIZE)
    assert spots.names == names
    np.testing.assert_array_equal(spots.coords, [[10, 20], [30.5, 40]])
    assert (spots.array == -1).all()
    assert spots.array.dtype == np.int32


@pytest.mark.parametrize("header", [HEADER, ""])
def test_the_spots_of_visium_in_tissue(tmp_path: Path, header: str) -> None:
    spots = read_coords("S", write(tmp_path / "tissue_positions_list.csv", header + VISIUM), SIZE)
    assert spots.names == ["AAA-1", "GGG-1"]
    np.testing.assert_array_equal(spots.coords, [[200, 100.5], [250, 150]])
    np.testing.assert_array_equal(spots.array, [[0, 0], [1, 1]])


def test_the_same_spots_in_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="no pyarrow here (pip install pyarrow)")
    from pyarrow import csv, parquet

    table = csv.read_csv(pyarrow.BufferReader((HEADER + VISIUM).encode()))
    parquet.write_table(table, tmp_path / "tissue_positions.parquet")
    spots = read_coords("S", tmp_path / "tissue_positions.parquet", SIZE)
    assert spots.names == ["AAA-1", "GGG-1"]
    np.testing.assert_array_equal(spots.coords, [[200, 100.5], [250, 150]])
    np.testing.assert_array_equal(spots.array, [[0, 0], [1, 1]])


def test_parquet_without_pyarrow_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SlideError, match=r"Parquet files need pyarrow; pip install 'hist-cache\[parquet\]'"):
        read_coords("S", tmp_path / "tissue_positions.parquet", SIZE)


def test_array_columns_beside_x_and_y(tmp_path: Path) -> None:
    spots = read_coords("S", write(tmp_path / "a.csv", "x,y,array_row,array_col\n1,2,3,4\n5,6,7,8\n"), SIZE)
    np.testing.assert_array_equal(spots.array, [[3, 4], [7, 8]])
    spots = read_coords("S", write(tmp_path / "a.csv", "x,y,array_row,array_col\n1,2,3.5,4\n5,6,7,8\n"), SIZE)
    assert (spots.array == -1).all()


def write_table(path: Path, names: list[str], coords: list[list[float]], **columns: list[int]) -> Path:
    table = anndata.AnnData(obs=pd.DataFrame(columns, index=names), obsm={"spatial": np.array(coords)})
    table.write_h5ad(path)
    return path


def test_places_in_an_h5ad(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.h5ad", ["b", "a"], [[10, 20], [30.5, 40]], array_row=[1, 2], array_col=[3, 4])
    spots = read_coords("S", path, SIZE)
    assert spots.names == ["b", "a"]
    np.testing.assert_array_equal(spots.coords, [[10, 20], [30.5, 40]])
    np.testing.assert_array_equal(spots.array, [[1, 3], [2, 4]])
    with pytest.raises(SlideError, match=r"duplicate barcodes \(a and 0 more\)"):
        read_coords("S", write_table(tmp_path / "b.h5ad", ["a", "a"], [[10, 20], [30.5, 40]]), SIZE)
    anndata.AnnData(obs=pd.DataFrame(index=["a"])).write_h5ad(tmp_path / "c.h5ad")
    with pytest.raises(SlideError, match=r"c\.h5ad: no obsm\['spatial'\]"):
        read_coords("S", tmp_path / "c.h5ad", SIZE)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "an empty file; a header with x and y"),
        ("x,y\n", "no spots in it"),
        (HEADER + "A,0,0,0,1,1\n", "no spots in it"),
        ("1,2\n3,4\n", "its columns are 1, 2; a header with x and y"),
        ("x;y\n3;4\n", "its columns are x;y; a header"),
        ("x,y\n3,4\n5\n", "row 2 after the header has 1 of 2 columns"),
        ("x,y\n5\n", "row 1 after the header has 1 of 2 columns"),
        ("x,y\n3,b\n", "y is 'b' in a row"),
        ("x,y\n3,nan\n1,2\n", "1 spots have no finite x and y"),
        ("x,y\n3,1e300\n", "1 spots lie at 1e.300 px"),
        ("id,x,y\na,1,2\na,3,4\na,3,4\n", r"duplicate names of spots \(a and 1 more\); make them unique"),
        ("id,x,y\n,1,2\n", "its column 'id' has an empty name"),
        ("x,y\n3,4\n3,801\n3,-1\n", r"2 of 3 spots lie outside the image \(1000 x 800 px\)"),
    ],
)
def test_bad_files_get_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SlideError, match=rf"^S: .*a\.csv: .*{says}") as raised:
        read_coords("S", write(tmp_path / "a.csv", text), SIZE)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="no such file"):
        read_coords("S", tmp_path / "a.csv", SIZE)
    (tmp_path / "a.csv").write_bytes(b"x,y\n\xff,1\n")
    with pytest.raises(SlideError, match="not text in UTF-8"):
        read_coords("S", tmp_path / "a.csv", SIZE)
    with pytest.raises(SlideError, match=r"a\.h5ad: "):
        read_coords("S", tmp_path / "a.h5ad", SIZE)


def test_some_spots_outside_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(read_coords("S", write(tmp_path / "a.csv", "x,y\n3,4\n3,5\n1000,4\n"), SIZE)) == 3
    assert "1 of 3 spots lie outside the image; white there" in caplog.text
