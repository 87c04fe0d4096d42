import json
from pathlib import Path

import anndata
import numpy as np
import pytest
from scipy.sparse import csr_matrix

from hist_cache.errors import HistError, InputError, SlideError
from hist_cache.slides import find_slide, is_absent, slides_on_disk, table_folder
from hist_cache.spots import Spots, read_spots
from tests.conftest import SHARED, needs_shared, write_slide


def change(path: Path, **what) -> None:  # type: ignore[no-untyped-def]
    table = anndata.read_h5ad(path)
    for name, value in what.items():
        if name == "spatial":
            table.obsm["spatial"] = value
        else:
            setattr(table, name, value)
    table.write_h5ad(path)


def read(root: Path, slide: str = "TINY1") -> Spots:
    return read_spots(find_slide(root, slide))


def test_reads_what_was_written(hest_root: Path) -> None:
    table = anndata.read_h5ad(hest_root / "st/TINY1.h5ad")
    spots = read(hest_root)
    assert spots.barcodes == list(table.obs_names)
    assert spots.genes == list(table.var_names)
    np.testing.assert_array_equal(spots.counts.toarray(), table.X.toarray())
    np.testing.assert_array_equal(spots.coords, table.obsm["spatial"])
    np.testing.assert_array_equal(spots.array, table.obs[["array_row", "array_col"]])
    assert slides_on_disk(hest_root) == ["TINY1", "TINY2"]


@pytest.mark.parametrize("kind", [np.float32, np.int64, np.float64])
@pytest.mark.parametrize("dense", [True, False])
def test_counts_of_any_type(hest_root: Path, kind: type, dense: bool) -> None:
    path = hest_root / "st/TINY1.h5ad"
    x = anndata.read_h5ad(path).X.toarray().astype(kind)
    change(path, X=x if dense else csr_matrix(x))
    np.testing.assert_array_equal(read(hest_root).counts.toarray(), x)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t[:0].copy(), "it has no spots"),
        (lambda t: renamed(t), "duplicate barcodes (000x000 and 0 more)"),
        (lambda t: with_counts(t, np.nan), "1 counts are NaN or negative"),
        (lambda t: with_counts(t, -1), "1 counts are NaN or negative"),
        (lambda t: with_counts(t, 0.5), "not whole numbers"),
        (lambda t: ensembl(t), "genes are named by Ensembl id"),
        (lambda t: no_positions(t), "no obsm['spatial']"),
    ],
)
def test_bad_tables_get_one_line_that_names_slide_and_file(hest_root: Path, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    path = hest_root / "st/TINY1.h5ad"
    spoil(anndata.read_h5ad(path)).write_h5ad(path)
    with pytest.raises(SlideError) as error:
        read(hest_root)
    assert message in str(error.value)
    assert "TINY1" in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def renamed(table: anndata.AnnData) -> anndata.AnnData:
    table.obs_names = [table.obs_names[0], table.obs_names[0], *table.obs_names[2:]]
    return table


def with_counts(table: anndata.AnnData, value: float) -> anndata.AnnData:
    x = table.X.toarray()
    x[0, 0] = value
    table.X = x
    return table


def ensembl(table: anndata.AnnData) -> anndata.AnnData:
    table.var_names = [f"ENSG{i:011d}" for i in range(table.n_vars)]
    return table


def no_positions(table: anndata.AnnData) -> anndata.AnnData:
    del table.obsm["spatial"]
    return table


def test_ensembl_ids_with_a_column_of_symbols(hest_root: Path) -> None:
    path = hest_root / "st/TINY1.h5ad"
    table = ensembl(anndata.read_h5ad(path))
    table.var["gene_name"] = ["SAME", "SAME", "", *[f"S{i}" for i in range(table.n_vars - 3)]]
    table.write_h5ad(path)
    assert read(hest_root).genes[:4] == ["SAME", "SAME-1", "ENSG00000000002", "S0"]


def test_truncated_table(hest_root: Path) -> None:
    path = hest_root / "st/TINY1.h5ad"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SlideError, match="cannot be read"):
        read(hest_root)


def test_missing_image_and_metadata_and_pixel_size(hest_root: Path) -> None:
    file = hest_root / "metadata/TINY2.json"
    file.write_text(file.read_text().replace("2.0", "NaN"))
    with pytest.raises(SlideError, match=r"TINY2.*TINY2\.json: no pixel size"):
        find_slide(hest_root, "TINY2")
    (hest_root / "wsis/TINY1.tif").unlink()
    with pytest.raises(SlideError, match=r"TINY1.*TINY1\.tif: no image"):
        find_slide(hest_root, "TINY1")
    assert not is_absent(hest_root, "TINY1")
    assert is_absent(hest_root, "TINY3")
    file.unlink()
    with pytest.raises(SlideError, match="no metadata"):
        find_slide(hest_root, "TINY2")


def test_metadata_from_the_table_with_a_byte_order_mark(hest_root: Path) -> None:
    (hest_root / "metadata/TINY1.json").unlink()
    (hest_root / "HEST_v1_1_0.csv").write_text(
        "\ufeffdataset_title,id,st_technology,pixel_size_um_estimated,inter_spot_dist,spot_diameter\n"
        "x,TINY1,Visium,0.5,,55\n",
        encoding="utf-8",
    )
    files = find_slide(hest_root, "TINY1")
    assert (files.um_per_px, files.pitch_um, files.spot_um) == (0.5, 100.0, 55.0)


def test_embedded_pixel_size_that_contradicts_gives_a_warning(
    hest_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = hest_root / "metadata/TINY1.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pixel_size_um_embedded": 0.2}))
    assert find_slide(hest_root, "TINY1").um_per_px == 2.0
    assert caplog.records[-1].levelname == "WARNING"
    assert "embedded pixel size 0.2 um differs" in caplog.text


def test_not_a_hest_folder(tmp_path: Path) -> None:
    for folder, message in ((tmp_path, "not a HEST folder"), (tmp_path / "none", "no such folder")):
        with pytest.raises(InputError, match=message):
            table_folder(folder)


def test_hest_bench_layout(tmp_path: Path) -> None:
    write_slide(tmp_path, "TINY1")
    (tmp_path / "st").rename(tmp_path / "adata")
    assert len(read(tmp_path)) == 30


@needs_shared
def test_real_slides() -> None:
    root = SHARED / "hest"
    for slide in slides_on_disk(root):
        files = find_slide(root, slide)
        spots = read_spots(files)
        assert 180 <= len(spots) <= 187
        assert 15_700 <= len(spots.genes) <= 15_850
        assert (files.pitch_um, files.spot_um) == (200.0, 100.0)
        assert 0.68 < files.um_per_px < 0.70
    with pytest.raises(HistError):
        find_slide(root, "SPA1")
