"""Small outs/ folders of Visium HD and Xenium, in the formats' own writers, on an image that tells where it is."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import tifffile
from scipy.sparse import csr_matrix

GENES = [f"GENE{i}" for i in range(12)]
OTHERS = ["NegControlProbe_1", "BLANK_7"]


def write_image(path: Path, width: int, height: int) -> np.ndarray:
    """A tissue-coloured image without two equal places: green and blue count rows and columns."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:height, :width]
    shade = rng.integers(0, 40, (height // 16 + 1, width // 16 + 1))
    shade = np.kron(shade, np.ones((16, 16), dtype=np.int64))[:height, :width]
    image = np.stack([200 - shade, 90 + (x * 7 + y) % 31, 150 + (x + y * 5) % 37], axis=2).astype(np.uint8)
    tifffile.imwrite(path, image, tile=(128, 128), photometric="rgb", compression="zlib")
    return image


def write_matrix(path: Path, counts: csr_matrix, barcodes: list[str], names: list[str], kinds: list[str]) -> None:
    """Counts (barcodes, features) as 10x Genomics' programs write them: features x barcodes, by columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, dtype="S")
        group["data"] = counts.data.astype(np.int32)
        group["indices"] = counts.indices.astype(np.int64)
        group["indptr"] = counts.indptr.astype(np.int64)
        group["shape"] = np.array(counts.shape[::-1], dtype=np.int32)
        features = group.create_group("features")
        features["name"] = np.array(names, dtype="S")
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(len(names))], dtype="S")
        features["feature_type"] = np.array(kinds, dtype="S")
        features["genome"] = np.array(["GRCh38"] * len(names), dtype="S")
        features["_all_tag_keys"] = np.array(["genome"], dtype="S")


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.table(columns), path)


def write_hd(
    outs: Path, bin_um: int, n: int, um_per_px: float, *, angle: float = 0.0, at_px: float = 40.0, **scales: Any
) -> tuple[np.ndarray, csr_matrix]:
    """A square of n x n bins, turned by an angle; returns the places of those in tissue in px, and their counts.

    The counts are written in another order than the positions, a corner is not in tissue, and a feature is no gene.
    """
    rng = np.random.default_rng(bin_um)
    row, column = np.mgrid[:n, :n].reshape(2, -1)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    px = np.stack([column + 0.5, row + 0.5], axis=1) * bin_um / um_per_px @ turn + at_px
    barcodes = [f"s_{bin_um:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, column, strict=True)]
    in_tissue = row + column > n // 4
    folder = outs / f"binned_outputs/square_{bin_um:03d}um"
    write_parquet(
        folder / "spatial/tissue_positions.parquet",
        {
            "barcode": barcodes,
            "in_tissue": in_tissue.astype(np.int64),
            "array_row": row,
            "array_col": column,
            "pxl_row_in_fullres": px[:, 1],
            "pxl_col_in_fullres": px[:, 0],
        },
    )
    stated = {
        "spot_diameter_fullres": bin_um / um_per_px,
        "bin_size_um": float(bin_um),
        "microns_per_pixel": um_per_px,
        "tissue_lowres_scalef": 0.1,
    }
    (folder / "spatial/scalefactors_json.json").write_text(json.dumps(stated | scales))
    order = rng.permutation(np.flatnonzero(in_tissue))
    counts = csr_matrix(rng.poisson(1.5, (len(order), len(GENES) + 1)))
    kinds = ["Gene Expression"] * len(GENES) + ["Antibody Capture"]
    write_matrix(folder / "filtered_feature_bc_matrix.h5", counts, [barcodes[i] for i in order], [*GENES, "CD3"], kinds)
    return px[order], counts[:, : len(GENES)]


XENIUM_PX = 0.2125  # um


@dataclass
class Transcripts:
    """All transcripts of a folder, also those that do not count."""

    um: np.ndarray  # (n, 2)
    names: np.ndarray  # (n,)
    quality: np.ndarray  # (n,)


def write_xenium(outs: Path, side_um: float, per_um2: float = 0.03) -> Transcripts:
    """A square of transcripts with a hole in it, cells that name the panel, and a morphology image."""
    rng = np.random.default_rng(8)
    um = rng.uniform(0, side_um, (int(side_um**2 * per_um2), 2))
    um = um[np.linalg.norm(um - side_um / 2, axis=1) > side_um / 8]
    names = rng.choice([*GENES, *OTHERS], len(um))
    points = Transcripts(um, names, rng.choice([5.0, 19.9, 20.0, 40.0], len(um), p=[0.1, 0.1, 0.1, 0.7]))
    write_transcripts(outs / "transcripts.parquet", points)
    write_cells(outs, 30, "none")
    px = round(side_um / XENIUM_PX)
    morphology = np.zeros((2, px // 8, px // 8), dtype=np.uint16)
    tifffile.imwrite(outs / "morphology_focus.ome.tif", morphology, metadata={"axes": "CYX"})
    return points


def write_transcripts(path: Path, points: Transcripts, old: bool = False) -> None:
    """transcripts.parquet as analysers of version 3 write it, or those of version 1."""
    n = len(points.um)
    columns: dict[str, Any] = {
        "transcript_id": np.arange(n, dtype=np.uint64),
        "cell_id": ["UNASSIGNED"] * n,
        "x_location": points.um[:, 0].astype(np.float32),
        "y_location": points.um[:, 1].astype(np.float32),
        "z_location": np.zeros(n, dtype=np.float32),
        "qv": points.quality.astype(np.float32),
    }
    if old:
        columns["feature_name"] = pa.array([name.encode() for name in points.names.tolist()], pa.binary())
    else:
        columns["feature_name"] = points.names.tolist()
        columns["is_gene"] = np.isin(points.names, GENES)
    points.um = points.um.astype(np.float32).astype(np.float64)
    points.quality = points.quality.astype(np.float32).astype(np.float64)
    write_parquet(path, columns)


def write_cells(outs: Path, n: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The table of cells and their places; returns centres in um, and counts of GENES and SILENT."""
    rng = np.random.default_rng(n)
    centers = rng.uniform(0, 500, (n, 2))
    counts = csr_matrix(rng.poisson(1, (n, len(GENES) + 3)))
    names = [*GENES, "SILENT", *OTHERS]
    kinds = ["Gene Expression"] * (len(GENES) + 1) + ["Negative Control Probe", "Blank Codeword"]
    cells = [f"cell{i}-1" for i in range(n)]
    write_matrix(outs / "cell_feature_matrix.h5", counts, cells, names, kinds)
    order = rng.permutation(n)
    if kind == "parquet":
        x, y = centers[order].T
        write_parquet(outs / "cells.parquet", {"cell_id": [cells[i] for i in order], "x_centroid": x, "y_centroid": y})
    elif kind == "csv":
        lines = "".join(f'"{cells[i]}",{centers[i, 0]!r},{centers[i, 1]!r},9\n' for i in order.tolist())
        text = '"cell_id","x_centroid","y_centroid","transcript_counts"\n' + lines
        (outs / "cells.csv.gz").write_bytes(gzip.compress(text.replace("np.float64(", "").replace(")", "").encode()))
    (outs / "experiment.xenium").write_text(json.dumps({"major_version": 4, "pixel_size": XENIUM_PX}))
    return centers, counts.toarray()[:, : len(GENES) + 1]


def write_alignment(path: Path, scale: float = 1.0, angle: float = 0.0, mirror: bool = False) -> np.ndarray:
    """A matrix from px of an H&E image to those of the morphology image, as Xenium Explorer exports it."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
    matrix = np.eye(3)
    matrix[:2, :2] = turn @ np.diag([-1 if mirror else 1, 1])
    matrix[:2, 2] = (0.0, 0.0) if scale == 1 and angle == 0 else (300.0, -120.0)
    path.write_text("".join(",".join(f"{v!r}" for v in row) + "\n" for row in matrix.tolist()))
    return matrix
