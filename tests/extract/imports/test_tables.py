"""h5ad files of other programs and tables of legacy Spatial Transcriptomics."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from extract.imports.cli import main
from extract.imports.pitch import measure_pitch, visium_scale
from hist_cache.slides import find_slide
from hist_cache.spots import read_spots
from tests.conftest import SHARED, needs_shared
from tests.extract.imports.sources import GENES, UM_PER_PX, Section, color, make_section, marks_at, write_image

Run = Callable[..., tuple[int, str]]


def make_h5ad(section: Section, x: np.ndarray | None = None, **more: Any) -> anndata.AnnData:
    rows = section.measured
    counts = section.counts[rows].astype(np.float32)
    return anndata.AnnData(
        X=csr_matrix(counts if x is None else x),
        obs=pd.DataFrame(
            dict(zip(("array_row", "array_col"), section.array[rows].T, strict=True)),
            index=[section.barcodes[i] for i in rows],
        ),
        var=pd.DataFrame(
            {"gene_ids": [f"ENSG{i:011d}" for i in range(GENES)]}, index=[f"GENE{i}" for i in range(GENES)]
        ),
        obsm={"spatial": section.coords[rows]},
        **more,
    )


@pytest.mark.parametrize("where", ["X", "layers", "raw"])
def test_raw_counts_are_found_beside_normalised_ones(
    where: str, section: Section, image: Path, tmp_path: Path, run_command: Run
) -> None:
    counts = section.counts[section.measured].astype(np.float32)
    table = make_h5ad(section, counts if where == "X" else np.log1p(counts))
    if where == "layers":
        table.layers["counts"] = csr_matrix(counts)
    if where == "raw":
        table.raw = anndata.AnnData(csr_matrix(counts), obs=table.obs, var=table.var)
        table = table[:, :3].copy()
    table.write_h5ad(tmp_path / "mouse.h5ad")
    code, text = run_command(main, "mouse.h5ad", "--image", image, "--data-root", "data")
    assert code == 0, text
    assert f"counts are those of {where}" in text
    slide = find_slide(tmp_path / "data", "mouse")
    spots = read_spots(slide)
    assert (spots.counts.toarray() == counts).all()
    assert spots.genes == [f"GENE{i}" for i in range(GENES)]
    assert slide.metadata["st_technology"] == "Visium"  # its array rows and columns are Visium's
    assert slide.um_per_px == pytest.approx(UM_PER_PX, rel=1e-3)
    assert marks_at(slide.image, spots.coords) == [color(i) for i in section.measured]


def test_normalised_counts_alone_are_refused(section: Section, image: Path, tmp_path: Path, run_command: Run) -> None:
    make_h5ad(section, np.log1p(section.counts[section.measured])).write_h5ad(tmp_path / "mouse.h5ad")
    code, text = run_command(main, "mouse.h5ad", "--image", image, "--data-root", "data")
    assert code == 1
    assert "mouse.h5ad: no raw counts in X (normalised?); raw counts are needed" in text


def test_spots_that_are_not_visiums_need_their_sizes(
    section: Section, image: Path, tmp_path: Path, run_command: Run
) -> None:
    table = make_h5ad(section)
    table.obs = table.obs.drop(columns=["array_row", "array_col"])
    table.write_h5ad(tmp_path / "other.h5ad")
    code, text = run_command(main, "other.h5ad", "--image", image, "--data-root", "data")
    assert code == 2
    assert "give --pitch and --spot" in text
    code, text = run_command(main, "other.h5ad", "--image", image, "--data-root", "data", "--pitch", 50, "--spot", 20)
    assert code == 0, text
    slide = find_slide(tmp_path / "data", "other")
    assert (slide.pitch_um, slide.spot_um) == (50, 20)
    assert slide.um_per_px == pytest.approx(UM_PER_PX / 2, rel=1e-3)


def test_the_diameter_in_uns_makes_a_visium_slide(
    section: Section, image: Path, tmp_path: Path, run_command: Run
) -> None:
    table = make_h5ad(section)
    table.obs = table.obs.drop(columns=["array_row", "array_col"])
    table.uns["spatial"] = {"L": {"scalefactors": {"spot_diameter_fullres": 55 / UM_PER_PX}}}
    table.write_h5ad(tmp_path / "other.h5ad")
    code, text = run_command(main, "other.h5ad", "--image", image, "--data-root", "data")
    assert code == 0, text
    assert "by the pitch of 100 um, and spot_diameter_fullres as 55 um" in text


def test_a_diameter_makes_no_visium_slide_of_a_square_lattice(tmp_path: Path, run_command: Run) -> None:
    square = make_section(kind="square")  # as bins of Visium HD, of which scanpy keeps spot_diameter_fullres
    table = make_h5ad(square)
    table.uns["spatial"] = {"L": {"scalefactors": {"spot_diameter_fullres": 55 / UM_PER_PX}}}
    table.write_h5ad(tmp_path / "bins.h5ad")
    image = write_image(tmp_path / "scan.tif", square.pixels)
    code, text = run_command(main, "bins.h5ad", "--image", image, "--data-root", "data")
    assert code == 2
    assert "give --pitch and --spot" in text


@pytest.mark.parametrize("form", ["spots as rows", "spots as columns", "packed, without a name over the rows"])
def test_legacy_tables(form: str, tmp_path: Path, run_command: Run) -> None:
    section = make_section(pitch_px=200 / UM_PER_PX, kind="square")
    image = write_image(tmp_path / "scan.tif", section.pixels)
    rows = section.measured
    names = [f"{column}x{row}" for row, column in section.array[rows]]
    counts = pd.DataFrame(section.counts[rows], index=names, columns=[f"GENE{i}" for i in range(GENES)])
    text = (counts.T if form == "spots as columns" else counts).to_csv(sep="\t")
    source = tmp_path / "A1.tsv"
    if form.startswith("packed"):
        source = tmp_path / "A1.tsv.gz"
        source.write_bytes(gzip.compress(text.lstrip("\t").encode()))
    else:
        source.write_text(text)
    places = pd.DataFrame(
        {
            "x": section.array[:, 1],
            "y": section.array[:, 0],
            "new_x": section.array[:, 1] + 0.1,
            "new_y": section.array[:, 0] - 0.1,
            "pixel_x": section.coords[:, 0],
            "pixel_y": section.coords[:, 1],
            "selected": section.in_tissue.astype(int),
        }
    )
    places.to_csv(tmp_path / "A1_selection.tsv", sep="\t", index=False)
    places.to_csv(tmp_path / "A10_selection.tsv", sep="\t", index=False)
    code, text = run_command(main, source, "--image", image, "--data-root", "data")
    assert code == 0, text
    slide = find_slide(tmp_path / "data", "A1")
    assert (slide.pitch_um, slide.spot_um) == (200, 100)
    assert slide.um_per_px == pytest.approx(UM_PER_PX, rel=1e-3)
    spots = read_spots(slide)
    assert spots.barcodes == names
    assert (spots.counts.toarray() == section.counts[rows]).all()
    assert (spots.array == section.array[rows]).all()
    assert marks_at(slide.image, spots.coords) == [color(i) for i in rows]
    (tmp_path / "A1_selection.tsv").unlink()
    (tmp_path / "A10_selection.tsv").unlink()
    code, text = run_command(main, source, "--image", image, "--data-root", "data")
    assert code == 2
    assert "which file beside it has its spots' positions (none)? give --positions" in text


def test_pitch_of_a_turned_lattice_with_missing_spots() -> None:
    rng = np.random.default_rng(0)
    section = make_section(pitch_px=137.6)
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    row, column = np.mgrid[:30, :60].reshape(2, -1)
    keep = ((row + column) % 2 == 0) & (rng.random(len(row)) < 0.7)
    array = np.stack([row, column], axis=1)[keep].astype(np.int32)
    coords = np.round(array[:, ::-1] * (137.6 / 2, 137.6 * np.sqrt(0.75)) @ turn + 5000)
    for indices in (array, np.full_like(array, -1)):
        measured = measure_pitch(coords, indices)
        assert measured is not None
        assert (measured.px, measured.kind) == (pytest.approx(137.6, rel=1e-4), "hex")
    assert measure_pitch(rng.random((200, 2)) * 1000, np.full((200, 2), -1, dtype=np.int32)) is None
    assert section.array.min() >= 0
    assert visium_scale(None, 65.0).um_per_px == 1
    assert visium_scale(None, None) is None


@needs_shared
def test_a_real_slide_of_hest_gets_hests_pixel_size(tmp_path: Path, run_command: Run) -> None:
    image, table = SHARED / "hest/wsis/SPA138.tif", tmp_path / "SPA138.h5ad"
    table.symlink_to(SHARED / "hest/st/SPA138.h5ad")  # beside HEST's metadata, the pixel size would be read from there
    argv = (main, table, "--image", image, "--data-root", "data", "--pitch", 200, "--spot", 100, "--id", "mine")
    code, text = run_command(*argv)
    assert code == 0, text
    assert "98% of the spots lie on tissue" in text
    mine, hest = find_slide(tmp_path / "data", "mine"), find_slide(SHARED / "hest", "SPA138")
    assert mine.um_per_px == pytest.approx(hest.um_per_px, rel=1e-5)
    ours, theirs = read_spots(mine), read_spots(hest)
    assert (ours.coords == theirs.coords).all()
    assert (ours.counts != theirs.counts).nnz == 0
    assert ours.genes == theirs.genes
