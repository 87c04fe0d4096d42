"""Space Ranger's folders: each format, what is taken of it, and where each spot's crop lies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest

import extract.cli
import train.cli
from extract.imports.cli import main
from hist_cache.slides import find_slide
from hist_cache.spots import read_spots
from tests.conftest import TINY_ENCODER
from tests.extract.imports.sources import (
    GENES,
    MARK,
    UM_PER_PX,
    Section,
    color,
    make_section,
    marks_at,
    write_image,
    write_matrix_folder,
    write_outs,
)

Run = Callable[..., tuple[int, str]]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_each_format_is_read_and_every_mark_lies_under_its_spot(
    version: int, section: Section, image: Path, tmp_path: Path, run_command: Run
) -> None:
    if version == 3:
        pytest.importorskip("pyarrow")
    write_outs(tmp_path / "P7/outs", section, version)
    code, text = run_command(main, tmp_path / "P7", "--image", image, "--data-root", "data")
    assert code == 0, text
    assert "100% of the spots lie on tissue" in text
    assert "spot_diameter_fullres as 65 um" in text
    slide = find_slide(tmp_path / "data", "P7")
    assert slide.um_per_px == pytest.approx(UM_PER_PX, rel=1e-3)
    assert (slide.pitch_um, slide.spot_um) == (100, 55)
    spots = read_spots(slide)
    rows = section.measured
    assert spots.barcodes == [section.barcodes[i] for i in rows]
    assert (spots.coords == section.coords[rows]).all()
    assert (spots.array == section.array[rows]).all()
    assert (spots.counts.toarray() == section.counts[rows]).all()
    assert spots.genes[0] == "GENE0"
    assert spots.genes[-1] == "GENE0-1"
    assert "1 features that are no genes are left out (Antibody Capture)" in text
    assert marks_at(slide.image, spots.coords) == [color(i) for i in rows]
    assert (tmp_path / "data/wsis/P7.tif").is_symlink()


def test_import_and_extraction_are_one_command_each(
    section: Section, image: Path, tmp_path: Path, run_command: Run
) -> None:
    write_outs(tmp_path / "P7/outs", section)
    run_command(main, "P7/outs", "--image", image, "--data-root", "data", "--name", "mine")
    argv = ("--dataset", "mine", "--ids", "P7", "--data-root", "data", "--encoder", "demo")
    code, text = run_command(extract.cli.main, *argv)
    assert code == 0, text
    cached = next((tmp_path / "cache/mine").glob("demo-*/P7.h5"))
    with h5py.File(cached) as file:
        coords = file["coords"][:]
        names = [name.decode() for name in file["barcodes"][:]]
    side = round(55 / UM_PER_PX)
    corners = np.round(coords - side / 2)  # of the crops: what is in their middle?
    centres = corners + side // 2
    assert abs(centres - coords).max() <= MARK // 2
    wanted = [color(section.barcodes.index(name)) for name in names]
    assert marks_at(tmp_path / "data/wsis/P7.tif", centres) == wanted


@pytest.mark.slow
def test_a_dataset_is_imported_extracted_and_trained_on_in_a_command_each(tmp_path: Path, run_command: Run) -> None:
    """`hist.toml`, which the first command writes, is all that the others need."""
    pytest.importorskip("pyarrow")
    (tmp_path / "images").mkdir()
    for version in (1, 2, 3):
        section = make_section(seed=version)
        write_outs(tmp_path / f"P{version}/outs", section, version)
        write_image(tmp_path / f"images/P{version}.tif", section.pixels, UM_PER_PX)
    code, text = run_command(main, "P1/outs", "P2/outs", "P3/outs", "--image", "images", "--name", "liver")
    assert code == 0, text
    encoder = ("--encoder", TINY_ENCODER, "--random-weights", "--precision", "fp32")
    code, text = run_command(extract.cli.main, "--dataset", "liver", *encoder)
    assert code == 0, text
    assert "3 slides in cache/liver" in text
    small = ("--epochs", 1, "--width", 8, "--n-genes", 5, "--precision", "fp32")
    code, text = run_command(train.cli.main, "--split", "loso", *small)
    assert code == 0, text
    folds = sorted(tmp_path.glob("runs/liver/*/fold*/metrics.json"))
    tested = [json.loads(path.read_text())["slides"].keys() for path in folds]
    assert tested == [{"P1"}, {"P2"}, {"P3"}]


def test_counts_from_the_folder_of_matrix_market(
    section: Section, image: Path, tmp_path: Path, run_command: Run
) -> None:
    outs = write_outs(tmp_path / "P7/outs", section)
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    write_matrix_folder(outs / "filtered_feature_bc_matrix", section)
    code, text = run_command(main, "P7", "--image", image, "--data-root", "data")
    assert code == 0, text
    table = anndata.read_h5ad(tmp_path / "data/st/P7.h5ad")
    assert (table.X.toarray() == section.counts[section.measured]).all()
    assert list(table.var["gene_ids"]) == [f"ENSG{i:011d}" for i in range(GENES)]


def test_a_diameter_that_contradicts_the_pitch_is_said(
    section: Section, image: Path, tmp_path: Path, run_command: Run
) -> None:
    outs = write_outs(tmp_path / "P7/outs", section)
    file = outs / "spatial/scalefactors_json.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"spot_diameter_fullres": 40}))
    code, text = run_command(main, "P7", "--image", image, "--data-root", "data")
    assert code == 0
    assert "by spot_diameter_fullres a pixel has 1.625 um, by the spots' pitch of 100 um 2" in text
    assert find_slide(tmp_path / "data", "P7").um_per_px == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda outs: (outs / "spatial/tissue_positions.csv").unlink(), "none of tissue_positions.csv"),
        (lambda outs: (outs / "filtered_feature_bc_matrix.h5").write_bytes(b"no"), "cannot be read"),
        (lambda outs: (outs / "spatial/scalefactors_json.json").write_text('{"bin_size_um": 8}'), "bins of Visium HD"),
        (lambda outs: (outs / "spatial/scalefactors_json.json").write_text("{"), "not JSON"),
    ],
)
def test_what_is_missing_or_damaged_is_named(
    damage: Callable[[Path], object], said: str, section: Section, image: Path, tmp_path: Path, run_command: Run
) -> None:
    damage(write_outs(tmp_path / "P7/outs", section))
    code, text = run_command(main, "P7", "--image", image, "--data-root", "data")
    assert code == 1
    assert said in text
    assert len(text.splitlines()) == 1
    assert not (tmp_path / "data/st").exists()
