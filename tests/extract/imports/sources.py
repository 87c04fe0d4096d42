"""Folders as other programs write them, of one made-up section whose pixels say where each spot is.

Each spot has a mark of MARK x MARK px in a colour of its own at its centre, so Pillow tells which spot a crop is of.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import tifffile
from scipy.sparse import csc_matrix

UM_PER_PX = 2.0
SIZE = (900, 700)  # width and height, px
MARK = 5
LOW_PX = 200  # longer side of the low-resolution image
GENES = 12


@dataclass
class Section:
    """Spots on Visium's lattice, of which those in an L of tissue are measured."""

    barcodes: list[str]
    array: np.ndarray  # (N, 2) row, column
    coords: np.ndarray  # (N, 2) x, y in whole px
    in_tissue: np.ndarray
    counts: np.ndarray  # (N, GENES), 0 where there is no tissue
    pixels: np.ndarray

    @property
    def measured(self) -> np.ndarray:
        return np.flatnonzero(self.in_tissue)


def color(i: int) -> tuple[int, int, int]:
    """The mark of spot i."""
    return (200, 20 + i % 200, 40 + 30 * (i // 200))


def make_section(pitch_px: float = 100 / UM_PER_PX, kind: str = "hex", seed: int = 5) -> Section:
    rng = np.random.default_rng(seed)
    width, height = SIZE
    pixels = np.full((height, width, 3), 245, dtype=np.uint8)
    pixels[120:600, 100:250] = pixels[430:600, 100:750] = (190, 110, 170)
    pixels = np.clip(pixels + rng.integers(-6, 6, pixels.shape), 0, 255).astype(np.uint8)
    if kind == "hex":
        row, column = np.mgrid[0:16, 0:36].reshape(2, -1)
        keep = (row + column) % 2 == 0
        array = np.stack([row[keep], column[keep]], axis=1)
        xy = array[:, ::-1] * (pitch_px / 2, pitch_px * np.sqrt(0.75)) + (30, 40)
    else:
        row, column = np.mgrid[0:7, 0:9].reshape(2, -1)
        array = np.stack([row, column], axis=1)
        xy = array[:, ::-1] * pitch_px + (60, 70)
    coords = np.round(xy).astype(int)
    keep = ((coords > MARK) & (coords < np.array(SIZE) - MARK)).all(1)
    array, coords = array[keep], coords[keep]
    in_tissue = pixels[coords[:, 1], coords[:, 0], 1] < 180
    counts = rng.poisson(4, (len(coords), GENES)) * in_tissue[:, None]
    for i, (x, y) in enumerate(coords):
        if in_tissue[i]:
            pixels[y - MARK // 2 : y + MARK // 2 + 1, x - MARK // 2 : x + MARK // 2 + 1] = color(i)
    barcodes = [f"AAAC{i:04d}GTTT-1" for i in range(len(coords))]
    return Section(barcodes, array, coords, in_tissue, counts, pixels)


def write_image(path: Path, pixels: np.ndarray, um_per_px: float | None = None) -> Path:
    dots = None if um_per_px is None else (1e4 / um_per_px, 1e4 / um_per_px)
    tifffile.imwrite(path, pixels, tile=(256, 256), compression="deflate", photometric="rgb", resolution=dots,
                     resolutionunit=None if dots is None else "CENTIMETER")  # fmt: skip
    return path


def write_matrix_h5(path: Path, section: Section, extra_feature: bool = True) -> None:
    """The HDF5 format of 10x Genomics: features by spots, by columns."""
    rows = section.measured
    names = [f"GENE{i}" for i in range(GENES - 1)] + ["GENE0"]  # symbols repeat in real references too
    kinds = ["Gene Expression"] * GENES
    values = section.counts[rows]
    if extra_feature:
        names, kinds = [*names, "CD3"], [*kinds, "Antibody Capture"]
        values = np.column_stack([values, np.full(len(rows), 99)])
    matrix = csc_matrix(values.T.astype(np.int32))
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array([section.barcodes[i].encode() for i in rows])
        group["data"], group["indices"] = matrix.data, matrix.indices.astype(np.int64)
        group["indptr"], group["shape"] = matrix.indptr.astype(np.int64), np.array(matrix.shape, dtype=np.int32)
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i:011d}".encode() for i in range(len(names))])
        features["name"] = np.array([name.encode() for name in names])
        features["feature_type"] = np.array([kind.encode() for kind in kinds])
        features["genome"] = np.array([b"GRCh38"] * len(names))


def write_matrix_folder(folder: Path, section: Section) -> None:
    from scipy.io import mmwrite

    folder.mkdir(parents=True)
    rows = section.measured
    mmwrite(folder / "matrix.mtx", csc_matrix(section.counts[rows].T))
    (folder / "matrix.mtx.gz").write_bytes(gzip.compress((folder / "matrix.mtx").read_bytes()))
    (folder / "matrix.mtx").unlink()
    features = "".join(f"ENSG{i:011d}\tGENE{i}\tGene Expression\n" for i in range(GENES))
    (folder / "features.tsv.gz").write_bytes(gzip.compress(features.encode()))
    barcodes = "".join(f"{section.barcodes[i]}\n" for i in rows)
    (folder / "barcodes.tsv.gz").write_bytes(gzip.compress(barcodes.encode()))


def write_outs(outs: Path, section: Section, version: int = 2, coords: np.ndarray | None = None) -> Path:
    """The outs/ of Space Ranger 1 (no header), 2 (a header) or 3 (here with Parquet); `coords` replaces positions."""
    folder = outs / "spatial"
    folder.mkdir(parents=True)
    write_matrix_h5(outs / "filtered_feature_bc_matrix.h5", section)
    x, y = (section.coords if coords is None else coords).T
    columns = {
        "barcode": section.barcodes,
        "in_tissue": section.in_tissue.astype(int).tolist(),
        "array_row": section.array[:, 0].tolist(),
        "array_col": section.array[:, 1].tolist(),
        "pxl_row_in_fullres": y.tolist(),
        "pxl_col_in_fullres": x.tolist(),
    }
    lines = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    if version == 1:
        (folder / "tissue_positions_list.csv").write_text("\n".join(lines) + "\n")
    elif version == 2:
        (folder / "tissue_positions.csv").write_text("\n".join([",".join(columns), *lines]) + "\n")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "tissue_positions.parquet")
    scale = LOW_PX / max(SIZE)
    low = PIL.Image.fromarray(section.pixels).resize((LOW_PX, round(SIZE[1] * scale)), PIL.Image.Resampling.BOX)
    low.save(folder / "tissue_lowres_image.png")
    stated = {
        "spot_diameter_fullres": 65 / UM_PER_PX,
        "tissue_lowres_scalef": scale,
        "tissue_hires_scalef": 1.0,
        "fiducial_diameter_fullres": 105 / UM_PER_PX,
    }
    (folder / "scalefactors_json.json").write_text(json.dumps(stated))
    return outs


def marks_at(image: Path, coords: np.ndarray) -> list[tuple[int, int, int]]:
    """The pixels of an image at positions, read with Pillow."""
    with PIL.Image.open(image) as picture:
        return [picture.getpixel((int(x), int(y))) for x, y in coords]
