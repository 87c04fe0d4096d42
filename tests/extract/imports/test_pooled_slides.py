"""hist-import, then hist-extract, on a section whose colours say which gene is expressed.

Each crop, cut with Pillow, must show what the counts of its spot say.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import pytest
import tifffile
from scipy.sparse import csr_matrix

import extract.cli
from extract.imports.cli import main
from hist_cache.slides import find_slide
from hist_cache.spots import read_spots
from tests.extract.imports.tenx_folders import (
    GENES,
    XENIUM_PX,
    Transcripts,
    write_alignment,
    write_cells,
    write_hd,
    write_matrix,
    write_transcripts,
)

Run = Callable[..., tuple[int, str]]
UM_PER_PX = 0.5
SIDE = 1560  # px
BLOCK = 78  # px of one colour


@pytest.fixture(scope="module")
def gene_of_pixel() -> np.ndarray:
    """(SIDE, SIDE) number of the gene that is expressed there; -1 on the glass around."""
    genes = np.random.default_rng(4).integers(0, len(GENES), (SIDE // BLOCK, SIDE // BLOCK))
    genes[:2], genes[-2:], genes[:, :2], genes[:, -2:] = -1, -1, -1, -1
    return np.kron(genes, np.ones((BLOCK, BLOCK), dtype=np.int64))


@pytest.fixture(scope="module")
def image(gene_of_pixel: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = np.full((SIDE, SIDE, 3), 245, dtype=np.uint8)
    tissue = gene_of_pixel >= 0
    pixels[tissue] = np.stack([150 + 8 * gene_of_pixel[tissue], *np.full((2, tissue.sum()), [[100], [160]])], axis=1)
    path = tmp_path_factory.mktemp("images") / "he.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="deflate")
    return path


def check_crops(cached: Path, image: Path, um_per_px: float, spot_um: float, max_error: float) -> None:
    """The counts of each spot are those of the colours that a circle in its crop has."""
    with h5py.File(cached) as file:
        coords, genes = file["coords"][...], [name.decode() for name in file["genes"][...]]
        parts = [file[f"counts/{name}"][...] for name in ("data", "indices", "indptr")]
        counts = csr_matrix(tuple(parts), shape=(len(coords), len(genes))).toarray().astype(float)
    assert set(genes) >= set(GENES)
    counts = counts[:, [genes.index(gene) for gene in GENES]]
    side = round(spot_um / um_per_px)
    y, x = np.mgrid[:side, :side] + 0.5 - side / 2
    circle = np.hypot(x, y) <= side / 2
    shown = np.zeros_like(counts)
    with PIL.Image.open(image) as picture:
        for i, (left, top) in enumerate(np.round(coords - side / 2).astype(int).tolist()):
            red = np.asarray(picture.crop((left, top, left + side, top + side)))[circle][:, 0]
            shown[i] = np.bincount((red[red < 240] - 150) // 8, minlength=len(GENES))
    assert len(coords) > 25
    measured = counts / counts.sum(1, keepdims=True)
    seen = shown / np.maximum(shown.sum(1, keepdims=True), 1)
    assert abs(measured - seen).sum(1).mean() < max_error
    assert abs(measured - np.roll(seen, 1, axis=0)).sum(1).mean() > 1


def extracted(run_command: Run, tmp_path: Path, data: str = "data") -> Path:
    code, text = run_command(
        extract.cli.main, "--dataset", "mine", "--ids", "P9", "--data-root", data, "--encoder", "demo"
    )
    assert code == 0, text
    return next((tmp_path / "cache/mine").glob("demo-*/P9.h5"))


def write_hd_section(outs: Path, bin_um: int, gene_of_pixel: np.ndarray) -> None:
    """Bins in which the gene of the pixel in their middle is expressed."""
    n = int(SIDE * UM_PER_PX / bin_um)
    px, _ = write_hd(outs, bin_um, n, UM_PER_PX, at_px=0.0)
    gene = gene_of_pixel[tuple(px[:, ::-1].astype(int).T)]
    one_hot = (gene[:, None] == np.arange(len(GENES))[None]) * 3
    path = outs / f"binned_outputs/square_{bin_um:03d}um/filtered_feature_bc_matrix.h5"
    with h5py.File(path) as file:
        barcodes = [name.decode() for name in file["matrix/barcodes"][...]]
    write_matrix(path, csr_matrix(one_hot), barcodes, GENES, ["Gene Expression"] * len(GENES))


def test_pseudo_spots_of_visium_hd(gene_of_pixel: np.ndarray, image: Path, tmp_path: Path, run_command: Run) -> None:
    write_hd_section(tmp_path / "P9/outs", 8, gene_of_pixel)
    (tmp_path / "he.btf").symlink_to(image)
    code, text = run_command(main, "P9", "--image", "he.btf", "--pseudo-spots", 55, "--data-root", "data")
    assert code == 0, text
    assert "P9: Visium HD, " in text
    assert "spots of 55 um, 100 um apart" in text
    assert "bins of 8 um are pooled into" in " ".join(text.split())
    check_crops(extracted(run_command, tmp_path), image, UM_PER_PX, 55, 0.17)


def test_bins_of_visium_hd_and_a_hest_folder_of_them(
    gene_of_pixel: np.ndarray, image: Path, tmp_path: Path, run_command: Run
) -> None:
    write_hd_section(tmp_path / "P9/outs", 16, gene_of_pixel)
    code, text = run_command(main, "P9", "--image", image, "--bin", 16, "--data-root", "bins")
    assert code == 0, text
    assert "its spots are bins of 16 um" in text
    slide = find_slide(tmp_path / "bins", "P9")
    assert (slide.pitch_um, slide.spot_um, slide.um_per_px) == (16, 16, UM_PER_PX)
    bins = read_spots(slide)
    on_tissue = gene_of_pixel[tuple(bins.coords[:, ::-1].astype(int).T)]
    for i in range(0, len(bins), 97):
        assert bins.counts[i].toarray()[0].tolist() == [3 * (k == on_tissue[i]) for k in range(len(GENES))]
    # The same slide with the metadata that HEST has for Visium HD is refused, with the command that mends it.
    file = tmp_path / "bins/metadata/P9.json"
    stated = {"inter_spot_dist": 2.0, "spot_diameter": 2.0, "patient": "Patient 3"}
    file.write_text(json.dumps(json.loads(file.read_text()) | stated))
    argv = ("--dataset", "mine", "--ids", "P9", "--data-root", "bins", "--encoder", "demo")
    code, text = run_command(extract.cli.main, *argv)
    assert code == 1
    assert "hist-import bins/st/P9.h5ad --pseudo-spots 55" in text
    code, text = run_command(main, "bins/st/P9.h5ad", "--pseudo-spots", 55, "--data-root", "bins", "--replace")
    assert (code, "would be replaced by itself" in text) == (2, True)
    code, text = run_command(main, "bins/st/P9.h5ad", "--pseudo-spots", 55, "--data-root", "data")
    assert code == 0, text
    assert find_slide(tmp_path / "data", "P9").patient == "Patient 3"  # else splits could share the patient
    pooled = read_spots(find_slide(tmp_path / "data", "P9"))
    inside = np.linalg.norm(pooled.coords[:, None] - bins.coords[None], axis=2) * UM_PER_PX <= 27.5
    np.testing.assert_array_equal(pooled.counts.toarray(), inside @ bins.counts.toarray())


def test_pseudo_spots_of_xenium(gene_of_pixel: np.ndarray, image: Path, tmp_path: Path, run_command: Run) -> None:
    matrix = write_alignment(tmp_path / "matrix.csv", scale=UM_PER_PX / XENIUM_PX, angle=0.3, mirror=True)
    rng = np.random.default_rng(2)
    he = rng.uniform(0, SIDE, (80_000, 2))
    gene = gene_of_pixel[tuple(he[:, ::-1].astype(int).T)]
    he, gene = he[gene >= 0], gene[gene >= 0]
    um = (np.column_stack([he, np.ones(len(he))]) @ matrix.T)[:, :2] * XENIUM_PX
    points = Transcripts(um, np.array(GENES)[gene], np.full(len(um), 40.0))
    write_transcripts(tmp_path / "P9/outs/transcripts.parquet", points)
    write_cells(tmp_path / "P9/outs", 10, "none")
    argv = ("P9", "--image", image, "--alignment", "matrix.csv", "--data-root", "data")
    code, text = run_command(main, *argv)
    assert code == 0, text
    assert "spots of 55 um, 100 um apart" in text
    assert find_slide(tmp_path / "data", "P9").um_per_px == pytest.approx(UM_PER_PX)
    cached = extracted(run_command, tmp_path)
    with h5py.File(cached) as file:
        assert file.attrs["lattice"] == "hex"
    check_crops(cached, image, UM_PER_PX, 55, 0.17)
