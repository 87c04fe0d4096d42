"""The demo dataset: six generated sections in the layout of HEST-1k, for a trial without a download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hist_cache.errors import InputError
from hist_cache.files import atomic_write, write_json
from hist_cache.h5ad import write_h5ad

DEMO_IDS = ("DEMO1", "DEMO2", "DEMO3", "DEMO4", "DEMO5", "DEMO6")
PITCH_UM = 100.0
SPOT_UM = 55.0
SIDE_UM = 1900.0  # approximate width and height of the image
TILE_PX = 256
JPEG_QUALITY = 82
MIN_TISSUE = 0.5  # share of a spot's area


def write_demo(root: Path, ids: Sequence[str] = DEMO_IDS, seed: int = 0) -> list[str]:
    """Generate slides of the demo dataset below `root`, in `st/`, `wsis/` and `metadata/`.

    Each slide is from another patient and has about 280 spots of 55 um, 400 genes and 2 MB. The same seed and library
    versions give the same counts and pixels, whichever other slides are generated.

    Args:
        root: The data root.
        ids: Slides to generate. A slide whose three files exist is not changed, whatever its seed.
        seed: Seed of the dataset.

    Returns:
        IDs of the slides that were written.

    Raises:
        InputError: An ID is not one of the six.
    """
    unknown = [i for i in ids if i not in DEMO_IDS]
    if unknown:
        raise InputError(f"no demo slide {', '.join(unknown)}; there are {', '.join(DEMO_IDS)}")
    missing = missing_slides(root, ids)
    for slide in missing:
        _write_slide(root, slide, seed)
    return missing


def missing_slides(root: Path, ids: Sequence[str] = DEMO_IDS) -> list[str]:
    """List those of `ids` that lack a file below `root`."""
    return [i for i in ids if not all(p.exists() for p in demo_files(root, i))]


def demo_files(root: Path, slide: str) -> tuple[Path, Path, Path]:
    """Return the paths of a slide's table, image and metadata; the metadata are written last."""
    return root / "st" / f"{slide}.h5ad", root / "wsis" / f"{slide}.tif", root / "metadata" / f"{slide}.json"


def _write_slide(root: Path, slide: str, seed: int) -> None:
    from hist_cache.demo.genes import composition, demo_genes, draw_counts, drivers
    from hist_cache.demo.tissue import BACKGROUND, REGIONS, grow_tissue

    number = DEMO_IDS.index(slide)
    rng = np.random.default_rng([seed, 2, number])
    um_per_px = round(float(rng.uniform(0.66, 0.74)), 4)
    width, height = (round(SIDE_UM / um_per_px * rng.uniform(0.97, 1.03)) for _ in range(2))
    tissue = grow_tissue(rng, width, height, um_per_px)

    coords, array = hex_lattice(rng, width, height, PITCH_UM / um_per_px)
    shares = composition(tissue, coords, 0, SPOT_UM / 2, um_per_px)
    keep = shares[:, BACKGROUND] < 1 - MIN_TISSUE
    coords, array, shares = coords[keep], array[keep], shares[keep]
    region = np.array(REGIONS)[1:][shares[:, 1:].argmax(axis=1)]
    counts = draw_counts(drivers(tissue, coords, SPOT_UM, um_per_px), seed, rng)
    barcodes = ["".join(b) + "-1" for b in rng.choice(list("ACGT"), (len(coords), 16))]

    table, image, metadata = demo_files(root, slide)
    _write_table(table, counts, demo_genes(), barcodes, coords, array, region)
    with atomic_write(image) as partial_path:
        _write_pyramid(partial_path, tissue.pixels, um_per_px)
    write_json(metadata, _metadata(slide, um_per_px, width, height, counts))


def hex_lattice(
    rng: np.random.Generator, width: int, height: int, pitch_px: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Place the lattice of Visium over an image, rotated by up to 1.5 degrees as slides in a scanner are.

    Args:
        rng: Generator of shift and rotation.
        width: Width of the image in px.
        height: Height of the image in px.
        pitch_px: Distance between the centres of neighbouring spots.

    Returns:
        (N, 2) spot centres in px, x then y; and (N, 2) array row and array column. Columns count half pitches:
        neighbours in a row differ by 2, even rows have even columns and odd rows have odd columns.
    """
    rows, columns = int(height / pitch_px / 0.866) + 4, int(width / pitch_px * 2) + 4
    row, column = np.mgrid[:rows, :columns].reshape(2, -1)
    same_parity = (row + column) % 2 == 0
    row, column = row[same_parity], column[same_parity]
    x = (column - columns / 2) * pitch_px / 2 + width / 2 + rng.uniform(-0.2, 0.2) * pitch_px
    y = (row - rows / 2) * pitch_px * np.sqrt(0.75) + height / 2 + rng.uniform(-0.2, 0.2) * pitch_px
    angle = np.deg2rad(rng.uniform(-1.5, 1.5))
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = x - width / 2, y - height / 2
    coords = np.stack([cos * u - sin * v + width / 2, sin * u + cos * v + height / 2], axis=1)
    inside = ((coords >= 0) & (coords < (width, height))).all(axis=1)
    # A capture area has 78 rows and 128 columns, and the section is somewhere in it.
    start = 2 * rng.integers(4, 18, 2)
    return coords[inside], np.stack([row + start[0], column + start[1]], axis=1)[inside]


def _write_table(
    path: Path,
    counts: NDArray[np.int64],
    genes: list[str],
    barcodes: list[str],
    coords: NDArray[np.float64],
    array: NDArray[np.int64],
    region: NDArray[np.str_],
) -> None:
    import anndata
    import pandas as pd
    from scipy.sparse import csr_matrix

    obs = pd.DataFrame(
        {
            "in_tissue": np.ones(len(coords), dtype=bool),
            "array_row": array[:, 0],
            "array_col": array[:, 1],
            "pxl_col_in_fullres": coords[:, 0],
            "pxl_row_in_fullres": coords[:, 1],
            "total_counts": counts.sum(axis=1).astype(np.float32),
            "region": region,
        },
        index=barcodes,
    )
    table = anndata.AnnData(
        X=csr_matrix(counts.astype(np.float32)),
        obs=obs,
        var=pd.DataFrame(index=genes),
        obsm={"spatial": coords},
    )
    write_h5ad(path, table)


def _write_pyramid(path: Path, pixels: NDArray[np.uint8], um_per_px: float) -> None:
    """Write tiled JPEG pages, each half as large as the one before, down to one tile: OpenSlide's generic-tiff."""
    import tifffile

    with tifffile.TiffWriter(path) as tiff:
        level = 0
        while True:
            per_cm = 1e4 / (um_per_px * 2**level)
            tiff.write(
                pixels,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",  # the colours of `pixels`; JPEG stores them as YCbCr
                subsampling=(2, 2),
                compression="jpeg",
                compressionargs={"level": JPEG_QUALITY},
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 0),
                metadata=None,
                software=False,
            )
            height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
            if min(height, width) < TILE_PX // 2:
                return
            blocks = pixels[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
            pixels = ((blocks.sum(axis=(1, 3), dtype=np.uint16) + 2) // 4).astype(np.uint8)
            level += 1


def _metadata(slide: str, um_per_px: float, width: int, height: int, counts: NDArray[np.int64]) -> dict[str, Any]:
    number = DEMO_IDS.index(slide)
    patient = "ABCDEF"[number]
    return {
        "dataset_title": "Generated sections for trying out hist-cache (no real tissue)",
        "id": slide,
        "image_filename": f"{slide}.tif",
        "organ": "Generated",
        "disease_state": "Generated",
        "oncotree_code": None,
        "species": "Homo sapiens",
        "patient": f"Patient {patient}",
        "st_technology": "Visium",
        "license": "Apache-2.0",
        "magnification": "20x",
        "tissue": "Generated",
        "disease_comment": "generated",
        "subseries": f"{patient}1",
        "inter_spot_dist": PITCH_UM,
        "spot_diameter": SPOT_UM,
        "spots_under_tissue": len(counts),
        "nb_genes": counts.shape[1],
        "pixel_size_um_estimated": um_per_px,
        "pixel_size_um_embedded": um_per_px,
        "fullres_px_width": width,
        "fullres_px_height": height,
    }
