"""Folders of Xenium read into pseudo-spots, against distances of all transcripts from all spots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tifffile

from extract.imports import parquet
from extract.imports.options import ImportOptions
from extract.imports.sample import Sample
from extract.imports.xenium import XeniumReader
from hist_cache.errors import InputError, SlideError
from tests.extract.imports.tenx_folders import (
    GENES,
    XENIUM_PX,
    Transcripts,
    write_alignment,
    write_cells,
    write_image,
    write_transcripts,
    write_xenium,
)


@pytest.fixture(scope="module")
def xenium(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Transcripts]:
    outs = tmp_path_factory.mktemp("xenium") / "SLIDE8" / "outs"
    return outs, write_xenium(outs, side_um=600)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "he.tif"
    write_image(path, 1500, 1300)
    return path


def read(source: Path, **options: object) -> Sample:
    given = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return XeniumReader().read(source, ImportOptions(source=(str(source),), **given))  # type: ignore[arg-type]


def test_transcripts_are_pooled_where_they_lie_on_the_image(
    xenium: tuple[Path, Transcripts], image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outs, points = xenium
    matrix = write_alignment(tmp_path / "matrix.csv", scale=1.3, angle=0.4, mirror=True)
    monkeypatch.setattr(parquet.parquet_batches, "__defaults__", ((), 700))  # many batches
    sample = read(outs.parent, image=image, alignment=tmp_path / "matrix.csv")
    on_image = (np.column_stack([points.um / XENIUM_PX, np.ones(len(points.um))]) @ np.linalg.inv(matrix).T)[:, :2]
    distance = np.linalg.norm(sample.coords[:, None] - on_image[None], axis=2) * XENIUM_PX * 1.3
    good = (points.quality >= 20) & np.isin(points.names, GENES)
    one_hot = (points.names[good][:, None] == np.array(sample.genes)[None]).astype(int)
    np.testing.assert_array_equal(sample.counts.toarray(), (distance[:, good] <= 27.5) @ one_hot)
    assert sample.counts.sum() > 1000
    assert (sample.name, sample.technology, sample.pitch_um, sample.spot_um) == ("SLIDE8", "Xenium", 100, 55)
    assert sample.um_per_px == pytest.approx(XENIUM_PX * 1.3)
    low = (points.quality < 20).sum()
    controls = (~np.isin(points.names, GENES) & (points.quality >= 20)).sum()
    assert sample.notes[0] == (
        f"of {len(points.um):,} transcripts {low:,} with a quality (qv) below 20 and "
        f"{controls:,} of controls are left out"
    )
    assert sample.notes[1].startswith(f"pooled into {len(sample.coords)} pseudo-spots of 55 um")
    assert sample.genes == sorted([*GENES, "SILENT"])  # the panel's genes, also those that no transcript is of
    assert sample.gene_ids is not None


def test_files_of_older_analysers(xenium: tuple[Path, Transcripts], image: Path, tmp_path: Path) -> None:
    """Names are bytes, no column says what is a gene, and there is no table of cells."""
    outs, points = xenium
    write_alignment(tmp_path / "matrix.csv")
    new = read(outs, image=image, alignment=tmp_path / "matrix.csv")
    write_transcripts(tmp_path / "old/transcripts.parquet", points, old=True)
    (tmp_path / "old/experiment.xenium").write_text((outs / "experiment.xenium").read_text())
    old = read(tmp_path / "old", image=image, alignment=tmp_path / "matrix.csv")
    assert old.gene_ids is None
    assert sorted(old.genes) == sorted(set(new.genes) - {"SILENT"})
    columns = [new.genes.index(gene) for gene in old.genes]
    np.testing.assert_array_equal(old.counts.toarray(), new.counts[:, columns].toarray())
    np.testing.assert_allclose(old.coords, new.coords)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_cells_where_there_are_no_transcripts(tmp_path: Path, image: Path, kind: str) -> None:
    centers, counts = write_cells(tmp_path / "outs", 400, kind)
    write_alignment(tmp_path / "matrix.csv")
    sample = read(tmp_path / "outs", image=image, alignment=tmp_path / "matrix.csv", pseudo_spots=70.0)
    distance = np.linalg.norm(sample.coords[:, None] * XENIUM_PX - centers[None], axis=2)
    expected = (distance <= 35) @ counts
    columns = [[*GENES, "SILENT"].index(gene) for gene in sample.genes]
    np.testing.assert_array_equal(sample.counts.toarray(), expected[:, columns])
    assert sample.notes[0] == (
        "no transcripts.parquet: the counts of 400 whole cells are placed at their centres; "
        "2 features that are no genes are left out"
    )
    assert sample.pitch_um == pytest.approx(70 * 100 / 55)


def test_an_image_that_is_aligned_already(xenium: tuple[Path, Transcripts], tmp_path: Path) -> None:
    outs, _ = xenium
    height, width = tifffile.TiffFile(outs / "morphology_focus.ome.tif").series[0].shape[-2:]
    write_image(tmp_path / "SLIDE8.tif", width, height)
    sample = read(outs, image=tmp_path)
    assert sample.um_per_px == XENIUM_PX
    assert "an image of the size of morphology_focus.ome.tif" in sample.um_per_px_source
    write_image(tmp_path / "SLIDE8.tif", width + 5, height)
    with pytest.raises(InputError, match="is not aligned yet; give --alignment"):
        read(outs, image=tmp_path)
    with pytest.raises(InputError, match="give --image F and --alignment F"):
        read(outs)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,0,0\n0,1,0\n", "no 3 x 3 matrix"),
        ("fixedX,fixedY\n1,2\n", "not the keypoints"),
        ("1,0,0\n0,1,0\n1,1,1\n", "no 3 x 3 matrix"),
        ("1,0,0\n0,2,0\n0,0,1\n", "stretches one direction 2 times as much"),
        ("1,1,0\n1,1,0\n0,0,1\n", "stretches one direction"),
        ("1,0,nan\n0,1,0\n0,0,1\n", "no 3 x 3 matrix"),
    ],
)
def test_no_alignments(xenium: tuple[Path, Transcripts], image: Path, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "matrix.csv").write_text(text)
    with pytest.raises(SlideError, match=says):
        read(xenium[0], image=image, alignment=tmp_path / "matrix.csv")


def test_damaged_folders(image: Path, tmp_path: Path) -> None:
    outs = tmp_path / "outs"
    write_xenium(outs, side_um=300)
    write_alignment(tmp_path / "matrix.csv")
    whole = (outs / "transcripts.parquet").read_bytes()
    (outs / "transcripts.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SlideError, match=r"transcripts\.parquet: cannot be read"):
        read(outs, image=image, alignment=tmp_path / "matrix.csv")
    pa.parquet.write_table(pa.table({"x_location": [1.0]}), outs / "transcripts.parquet")
    with pytest.raises(SlideError, match="no column y_location, feature_name, qv"):
        read(outs, image=image, alignment=tmp_path / "matrix.csv")
    for name in ("transcripts.parquet", "cell_feature_matrix.h5"):
        (outs / name).unlink()
    with pytest.raises(SlideError, match=r"neither transcripts\.parquet nor cell_feature_matrix\.h5"):
        read(outs, image=image, alignment=tmp_path / "matrix.csv")
    for content in ("{}", '{"pixel_size": -1}', "[1]", "x"):
        (outs / "experiment.xenium").write_text(content)
        with pytest.raises(SlideError, match=r"pixel_size is|not JSON"):
            read(outs, image=image, alignment=tmp_path / "matrix.csv")
