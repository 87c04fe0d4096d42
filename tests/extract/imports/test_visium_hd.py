"""Folders of Visium HD, read into spots; pooling against distances of all bins from all spots."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from extract.imports.options import ImportOptions
from extract.imports.sample import Sample
from extract.imports.visium_hd import VisiumHDReader
from hist_cache.errors import InputError, SlideError
from tests.extract.imports.tenx_folders import GENES, write_hd

PX = 0.4  # um


@pytest.fixture(scope="module")
def outs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hd") / "SLIDE9" / "outs"


@pytest.fixture(scope="module")
def fine(outs: Path) -> tuple[np.ndarray, object]:
    write_hd(outs, 16, 25, PX)
    write_hd(outs, 8, 50, PX)
    return write_hd(outs, 2, 200, PX, angle=0.3)


def read(source: Path, **options: object) -> Sample:
    return VisiumHDReader().read(source, ImportOptions(source=(str(source),), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("bin_um", [8, 16])
def test_bins_are_spots(tmp_path: Path, bin_um: int) -> None:
    px, counts = write_hd(tmp_path / "SLIDE9/outs", bin_um, 30, PX, angle=0.2)
    options = {} if bin_um == 8 else {"bin": "16"}
    for source in (tmp_path / "SLIDE9", tmp_path / "SLIDE9/outs", tmp_path / "SLIDE9/outs/binned_outputs"):
        assert VisiumHDReader().recognises(source)
        sample = read(source, **options)
        assert sample.name == "SLIDE9"
    np.testing.assert_allclose(sample.coords, px)
    np.testing.assert_array_equal(sample.counts.toarray(), counts.toarray())
    assert sample.genes == GENES
    assert sample.gene_ids is not None
    assert sample.gene_ids[3] == "ENSG00000000003"
    assert (sample.technology, sample.pitch_um, sample.spot_um) == ("Visium HD", bin_um, bin_um)
    assert sample.um_per_px == pytest.approx(PX)
    row, column = sample.array.T
    assert sample.barcodes[7] == f"s_{bin_um:03d}um_{row[7]:05d}_{column[7]:05d}-1"
    assert f"its spots are bins of {bin_um} um" in sample.notes[-1]
    assert sample.notes[0] == "1 features that are no genes are left out"


def test_the_finest_bins_are_pooled(outs: Path, fine: tuple[np.ndarray, object]) -> None:
    sample = read(outs, pseudo_spots=55.0)
    px, counts = fine
    inside = np.linalg.norm(sample.coords[:, None] - px[None], axis=2) * PX <= 27.5
    np.testing.assert_array_equal(sample.counts.toarray(), inside @ counts.toarray())  # type: ignore[attr-defined]
    assert (sample.pitch_um, sample.spot_um, sample.technology) == (100, 55, "Visium HD")
    assert sample.notes[-1].startswith("bins of 2 um are pooled into ")
    assert len(sample.barcodes) == len(sample.coords) > 8


def test_bins_of_2_um_are_never_spots(tmp_path: Path) -> None:
    write_hd(tmp_path / "outs", 2, 30, PX)
    for options in ({}, {"bin": "16"}):
        with pytest.raises(InputError, match="only of 2 um; give --pseudo-spots 55 to pool bins"):
            read(tmp_path / "outs", **options)
    with pytest.raises(InputError, match="no larger than the bins of 2 um"):
        read(tmp_path / "outs", pseudo_spots=2.0)


def test_bins_without_a_position(tmp_path: Path) -> None:
    px, counts = write_hd(tmp_path / "outs", 8, 20, PX)
    path = tmp_path / "outs/binned_outputs/square_008um/filtered_feature_bc_matrix.h5"
    with h5py.File(path, "r+") as file:
        names = file["matrix/barcodes"][...]
        names[:3] = [b"a", b"b", b"c"]
        file["matrix/barcodes"][...] = names
    sample = read(tmp_path / "outs")
    np.testing.assert_allclose(sample.coords, px[3:])
    np.testing.assert_array_equal(sample.counts.toarray(), counts[3:].toarray())
    assert f"3 of {len(px)} bins have no position and are left out" in sample.notes


def test_scales_that_cannot_be(tmp_path: Path) -> None:
    write_hd(tmp_path / "outs", 8, 20, PX)
    file = tmp_path / "outs/binned_outputs/square_008um/spatial/scalefactors_json.json"
    stated = json.loads(file.read_text())
    for changed, says in (
        ({"microns_per_pixel": 0.2}, r"microns_per_pixel is 0\.2, but by its bins of 8 um a pixel has 0\.4 um"),
        ({"bin_size_um": 16.0}, "states bins of 16 um in a folder of bins of 8 um"),
    ):
        file.write_text(json.dumps(stated | changed))
        with pytest.raises(SlideError, match=says):
            read(tmp_path / "outs")
    file.write_text(json.dumps({}))
    sample = read(tmp_path / "outs")
    assert (sample.um_per_px, sample.um_per_px_source) == (pytest.approx(PX), "the bins of 8 um")
    for text in ("[]", "{", None):
        file.write_text(text) if text else file.unlink()
        with pytest.raises(SlideError, match=r"scalefactors_json\.json: (holds no names|not JSON|no such file)"):
            read(tmp_path / "outs")


def test_damaged_files(tmp_path: Path) -> None:
    write_hd(tmp_path / "outs", 8, 20, PX)
    folder = tmp_path / "outs/binned_outputs/square_008um"
    for name in ("filtered_feature_bc_matrix.h5", "spatial/tissue_positions.parquet"):
        file = folder / name
        whole = file.read_bytes()
        for content in (b"", whole[: len(whole) // 2]):
            file.write_bytes(content)
            with pytest.raises(SlideError, match=f"{file.name}: ") as error:
                read(tmp_path / "outs")
            assert "\n" not in str(error.value)
        file.write_bytes(whole)
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "r+") as h5:
        h5["matrix/indices"][5] = 10_000
    with pytest.raises(SlideError, match="no matrix of counts"):
        read(tmp_path / "outs")
