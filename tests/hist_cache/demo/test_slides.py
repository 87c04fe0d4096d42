import json
import os
from pathlib import Path

import numpy as np
import pytest

from hist_cache.demo.genes import PROGRAMMES, demo_genes
from hist_cache.demo.slides import DEMO_IDS, PITCH_UM, SPOT_UM, demo_files, write_demo
from hist_cache.demo.tissue import FAT, IMMUNE, STROMA, TUMOUR, grow_tissue
from hist_cache.errors import InputError
from hist_cache.lattice import find_lattice, ring_neighbors
from hist_cache.slides import find_slide, slides_on_disk
from hist_cache.spots import Spots, read_spots

SLIDE = "DEMO2"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert write_demo(folder, [SLIDE]) == [SLIDE]
    return folder


@pytest.fixture(scope="module")
def spots(root: Path) -> Spots:
    return read_spots(find_slide(root, SLIDE))


@pytest.fixture(scope="module")
def pixels(root: Path) -> np.ndarray:
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(root / "wsis" / f"{SLIDE}.tif") as image:
        return np.asarray(image.read_region((0, 0), 0, image.dimensions).convert("RGB"))


def haematoxylin(pixels: np.ndarray, spots: Spots, um_per_px: float) -> np.ndarray:
    """(N,) mean red optical density of the spot crops: eosin hardly absorbs red."""
    half = round(SPOT_UM / um_per_px / 2)
    red = -np.log(np.maximum(pixels[..., 0].astype(np.float64), 1) / 246)
    corners = np.maximum(np.round(spots.coords).astype(int) - half, 0)
    return np.array([red[y : y + 2 * half, x : x + 2 * half].mean() for x, y in corners])


def test_layout_as_in_hest(root: Path, spots: Spots, pixels: np.ndarray) -> None:
    import anndata

    assert slides_on_disk(root) == [SLIDE]
    assert sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()) == [
        f"metadata/{SLIDE}.json",
        f"st/{SLIDE}.h5ad",
        f"wsis/{SLIDE}.tif",
    ]
    files = find_slide(root, SLIDE)
    assert (files.pitch_um, files.spot_um, files.patient) == (100, 55, "Patient B")
    assert 0.66 <= files.um_per_px <= 0.74
    assert 250 <= len(spots) <= 350
    table = anndata.read_h5ad(files.table)
    np.testing.assert_array_equal(table.obs["pxl_col_in_fullres"], table.obsm["spatial"][:, 0])
    np.testing.assert_array_equal(table.obs["pxl_row_in_fullres"], table.obsm["spatial"][:, 1])
    assert set(table.obs["region"]) <= {"stroma", "tumour", "immune", "fat"}
    assert table.obs["in_tissue"].all()
    metadata = json.loads((root / "metadata" / f"{SLIDE}.json").read_text())
    assert (metadata["fullres_px_height"], metadata["fullres_px_width"]) == pixels.shape[:2]
    assert (metadata["spots_under_tissue"], metadata["nb_genes"]) == table.shape


def test_openslide_reads_pyramid_and_pixel_size(root: Path) -> None:
    openslide = pytest.importorskip("openslide")
    files = find_slide(root, SLIDE)
    with openslide.OpenSlide(files.image) as image:
        assert image.properties["openslide.vendor"] == "generic-tiff"
        assert image.level_count >= 4
        for (w, h), (w2, h2) in zip(image.level_dimensions, image.level_dimensions[1:], strict=False):
            assert (w2, h2) == (w // 2, h // 2)
        assert float(image.properties["openslide.mpp-x"]) == pytest.approx(files.um_per_px, rel=1e-4)
        assert image.properties["openslide.level[0].tile-width"] == "256"
        corner = np.asarray(image.read_region((0, 0), 0, (64, 64)).convert("RGB"))
    assert corner.min() > 235  # glass


def test_hex_lattice(root: Path, spots: Spots) -> None:
    files = find_slide(root, SLIDE)
    pitch_px = PITCH_UM / files.um_per_px
    row, column = spots.array.T
    assert (row % 2 == column % 2).all()
    where = {(r, c): xy for r, c, xy in zip(row, column, spots.coords, strict=True)}
    for step in ((0, 2), (1, 1), (1, -1)):
        gaps = [
            np.linalg.norm(xy - where[r + step[0], c + step[1]])
            for (r, c), xy in where.items()
            if (r + step[0], c + step[1]) in where
        ]
        assert len(gaps) > 200
        np.testing.assert_allclose(gaps, pitch_px, rtol=1e-6)
    lattice = find_lattice(spots.coords, spots.array, pitch_px)
    assert (lattice.kind, lattice.source) == ("hex", "array")
    n_neighbors = (ring_neighbors(lattice, spots.coords, pitch_px, 1) >= 0).sum(axis=1)
    assert n_neighbors.max() == 6
    assert 0.05 < (n_neighbors < 6).mean() < 0.5  # a tissue has edges


def test_counts_are_raw(spots: Spots) -> None:
    genes = demo_genes()
    assert spots.genes == genes
    assert len(set(genes)) == len(genes) == 400
    assert sum(g.startswith("MT-") for g in genes) == 13
    counts = spots.counts.toarray()
    assert counts.min() == 0
    assert 4_000 < np.median(counts.sum(axis=1)) < 11_000
    assert len(set(spots.barcodes)) == len(spots)


@pytest.mark.long
def test_same_bytes_again_whatever_else_is_written(root: Path, tmp_path: Path) -> None:
    write_demo(tmp_path, ["DEMO1", SLIDE])
    for old, new in zip(demo_files(root, SLIDE), demo_files(tmp_path, SLIDE), strict=True):
        assert old.read_bytes() == new.read_bytes(), new.name
    assert demo_files(tmp_path, "DEMO1")[0].read_bytes() != demo_files(tmp_path, SLIDE)[0].read_bytes()


def test_complete_slide_is_left_alone_and_incomplete_one_rewritten(root: Path) -> None:
    files = demo_files(root, SLIDE)
    image, before = files[1].read_bytes(), [p.stat().st_mtime_ns for p in files]
    assert write_demo(root, [SLIDE]) == []
    assert [p.stat().st_mtime_ns for p in files] == before
    os.remove(files[2])
    assert write_demo(root, [SLIDE]) == [SLIDE]
    assert files[1].read_bytes() == image


def test_unknown_id(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"DEMO9.*DEMO1"):
        write_demo(tmp_path, ["DEMO9"])
    assert len(DEMO_IDS) == 6


def test_seed_changes_tissue() -> None:
    small = [grow_tissue(np.random.default_rng(s), 500, 420, 0.7) for s in (0, 0, 1)]
    assert small[0].pixels.shape == (420, 500, 3)
    np.testing.assert_array_equal(small[0].pixels, small[1].pixels)
    assert (small[0].pixels != small[2].pixels).any()
    assert set(np.unique(small[0].kinds)) <= {TUMOUR, IMMUNE, STROMA}


def test_nuclei_lie_in_their_regions() -> None:
    tissue = grow_tissue(np.random.default_rng(3), 1400, 1400, 0.7)
    at = np.clip((tissue.nuclei / 4).astype(int), 0, 349)
    here = tissue.regions[at[:, 1], at[:, 0]]
    assert (here[tissue.kinds == TUMOUR] == TUMOUR).all()
    assert (here != FAT).all()


def test_expression_is_visible_in_crops_where_it_should_be(root: Path, spots: Spots, pixels: np.ndarray) -> None:
    stain = haematoxylin(pixels, spots, find_slide(root, SLIDE).um_per_px)
    log = np.log2(1 + spots.counts.toarray())

    def correlation(programme: str) -> float:
        names = PROGRAMMES[programme][1].split()
        return float(np.mean([np.corrcoef(stain, log[:, spots.genes.index(g)])[0, 1] for g in names]))

    assert correlation("proliferating") > 0.5
    assert correlation("fibrous") < correlation("proliferating") - 0.4
    # No better where the crops belong to other spots.
    rolled = np.corrcoef(np.roll(stain, 97), log[:, spots.genes.index("MKI67")])[0, 1]
    assert abs(rolled) < 0.3


def test_some_programmes_follow_the_surroundings(root: Path, spots: Spots) -> None:
    """Interferon genes of spots that hold no lymphocytes still tell how many of their neighbours do."""
    import anndata

    files = find_slide(root, SLIDE)
    region = anndata.read_h5ad(files.table).obs["region"].to_numpy()
    pitch_px = PITCH_UM / files.um_per_px
    ring = ring_neighbors(find_lattice(spots.coords, spots.array, pitch_px), spots.coords, pitch_px, 1)
    immune_around = ((region[ring] == "immune") & (ring >= 0)).sum(axis=1)
    log = np.log2(1 + spots.counts.toarray())
    level = log[:, [spots.genes.index(g) for g in PROGRAMMES["interferon"][1].split()]].mean(axis=1)
    stroma = region == "stroma"
    assert np.corrcoef(immune_around[stroma], level[stroma])[0, 1] > 0.5
