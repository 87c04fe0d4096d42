"""The files of figures for a paper, read back with parsers of their own: sizes, text, colours, scale bars."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image
from pypdf import PdfReader
from scipy.stats import pearsonr

from hist_cache.cached_slide import CachedSlide
from tests.train.report.fake_runs import GENES, RIDGE, write_run
from train.experiments.outputs import squidpy_picture
from train.report.paper_figures.style import FORMATS, paper_style, save_paper_figure, size_mm
from train.report.paper_figures.written import PaperGroup, PaperRequest, genes_at_ranks, write_paper_figures
from train.report.reading import read_results
from train.report.results import Results

SVG = "{http://www.w3.org/2000/svg}"
MM_PER_PT = 25.4 / 72
GENE = "GENE3"
NAMES = {
    "tiny-maps-183mm": 183,
    "tiny-map-gene3-89mm": 89,
    "tiny-scatter-89mm": 89,
    "tiny-comparison-183mm": 183,
    "tiny-genes-89mm": 89,
}
REQUEST = PaperRequest(("svg",), dpi=200, genes=(GENE,), slide="S1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_run(root, (0.7, 0.72, 0.74), predictions=True)
    write_run(root, (0.6, 0.63, 0.68), change={"variant.name": "no_hea"}, predictions=True, seed=10)
    write_run(root, (0.5, 0.52, 0.55), change=RIDGE, predictions=True, seed=20)
    return root


@pytest.fixture(scope="module")
def folder(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    paths, remarks = write_paper_figures(read_results([runs]), folder, REQUEST)
    assert remarks == []
    assert {path.name for path in paths} == {f"{name}.{format}" for name in NAMES for format in REQUEST.formats}
    assert {path.name for path in folder.iterdir()} == {path.name for path in paths} | {"tiny-captions.md"}
    return folder


@pytest.fixture(scope="module")
def copies(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders with the maps alone in all formats, drawn from the runs twice."""
    folders = []
    for _ in range(2):
        results = read_results([runs])
        folders.append(tmp_path_factory.mktemp("copy"))
        with paper_style():
            figure = next(PaperGroup(results, list(results.runs), REQUEST, []).maps()).figure
            save_paper_figure(figure, folders[-1], "maps", FORMATS, 200)
    return folders


def texts(path: Path) -> list[tuple[str, str]]:
    """Text and style of each text of an SVG."""
    return [("".join(e.itertext()), e.get("style", "")) for e in ET.parse(path).iter(f"{SVG}text")]


def size_of(path: Path) -> list[float]:
    """Width and height of an SVG in mm."""
    root = ET.parse(path).getroot()
    return [float(root.get(side, "").removesuffix("pt")) * MM_PER_PT for side in ("width", "height")]


@pytest.mark.parametrize("name", NAMES)
def test_the_width_is_exact(folder: Path, name: str) -> None:
    width, height = size_of(folder / f"{name}.svg")
    assert width == pytest.approx(NAMES[name], abs=1e-4)
    assert height < 240


def test_all_formats_have_the_same_size(copies: list[Path]) -> None:
    width, height = size_of(copies[0] / "maps.svg")
    assert width == pytest.approx(183, abs=1e-4)
    [page] = PdfReader(copies[0] / "maps.pdf").pages
    assert [float(side) * MM_PER_PT for side in page.mediabox[2:]] == pytest.approx([width, height], abs=1e-3)
    with Image.open(copies[0] / "maps.png") as image:
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.01)
        assert [side / 200 * 25.4 for side in image.size] == pytest.approx([width, height], abs=0.13)  # a pixel


@pytest.mark.parametrize("name", ["tiny-maps-183mm", "tiny-map-gene3-89mm", "tiny-scatter-89mm"])
def test_text_stays_text_and_genes_are_italic(folder: Path, name: str) -> None:
    found = texts(folder / f"{name}.svg")
    assert [style for text, style in found if text == GENE and "font-style: italic" in style]
    assert not [text for text, style in found if "italic" in style and text != GENE]
    letters = [text for text, style in found if "font-weight: 700" in style and "font-size: 8px" in style]
    assert letters == (["a"] if "scatter" in name else ["a", "b"])
    sizes = {float(size) for _, style in found for size in re.findall(r"font-size: ([\d.]+)px", style)}
    assert sizes <= {5.5, 6, 7, 8}


def test_text_stays_text_in_pdf(copies: list[Path]) -> None:
    [page] = PdfReader(copies[0] / "maps.pdf").pages
    text = page.extract_text()
    assert all(word in text for word in (GENE, "measured", "no_hea", "log2(1 + count)", "100 µm"))
    for entry in page["/Resources"]["/Font"].values():
        font = entry.get_object()
        font = font["/DescendantFonts"][0].get_object() if "/DescendantFonts" in font else font
        assert font["/Subtype"] in ("/TrueType", "/CIDFontType2")


def test_numbers_on_the_maps(folder: Path, runs: Path) -> None:
    """PCC of each run over the slide's spots, as scipy computes it."""
    shown = [text for text, _ in texts(folder / "tiny-maps-183mm.svg") if text.startswith("PCC")]
    expected = []
    tables = [run.folds[1].fold.predictions for run in read_results([runs]).runs]  # of the fold that tests S1
    at = list(tables[0].var_names).index(GENE)
    for table in tables:
        value = pearsonr(table.X[:, at], tables[0].layers["truth"][:, at]).statistic  # measured: that of `full`
        expected.append(f"PCC {value:.2f}".replace("-", "−"))
    assert shown == expected


def test_the_scale_bar_against_the_distance_of_spots(folder: Path) -> None:
    """Spots are 200 px of 0.5 um apart, so neighbours in a row are 100 um apart."""
    root = ET.parse(folder / "tiny-map-gene3-89mm.svg").getroot()
    [label] = [text for text, _ in texts(folder / "tiny-map-gene3-89mm.svg") if text.endswith(" µm")]
    dark = [e.get("d", "") for e in root.iter(f"{SVG}path") if "fill: #262626" in e.get("style", "")]
    [bar] = [[float(x) for x in re.findall(r"[ML] (\S+) ", d)] for d in dark]
    length = max(bar) - min(bar)
    [spots] = [group for group in root.iter(f"{SVG}g") if group.get("id") == "EllipseCollection_1"]
    tops = [re.match(r"M (\S+) ", path.get("d", "")) for path in spots.iter(f"{SVG}path")]
    places = sorted({round(float(top[1]), 3) for top in tops if top})
    assert len(places) == 5
    assert length / (places[1] - places[0]) * 100 == pytest.approx(float(label.removesuffix(" µm")), rel=1e-3)


def test_the_same_runs_make_the_same_files(copies: list[Path]) -> None:
    first, second = copies
    assert len(list(first.iterdir())) == 3
    for path in first.iterdir():
        assert (second / path.name).read_bytes() == path.read_bytes(), path.name


def test_captions_say_what_a_reader_must_know(folder: Path) -> None:
    text = (folder / "tiny-captions.md").read_text()
    assert all(name in text for name in NAMES)
    assert "slide S1 \\(fold 1, 20 spots\\)".replace("\\", "") in text.replace("\\", "")
    assert "test/train 0.5" in text
    assert "mean over 3 folds" in text
    assert "paired by fold" in text


def test_default_genes_are_not_only_the_best(runs: Path) -> None:
    table = read_results([runs]).runs[0].folds[0].fold.predictions
    truth = table.layers["truth"]
    pcc = {g: pearsonr(table.X[:, j], truth[:, j]).statistic for j, g in enumerate(table.var_names)}
    order = sorted(pcc, key=lambda gene: -pcc[gene])
    assert genes_at_ranks(table) == (order[0], order[14], order[29], order[44])


def test_what_cannot_be_drawn_is_said_in_a_line(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.report.paper_figures.written.save_paper_figure", lambda *args: [])
    for fold in (runs / "tiny").glob("*/fold1/predictions.h5ad"):
        (tmp_path / fold.parent.parent.name).mkdir()
        fold.rename(tmp_path / fold.parent.parent.name / fold.name)
    try:
        remarks = write_paper_figures(read_results([runs]), tmp_path / "out", REQUEST)[1]
    finally:
        for name in tmp_path.glob("*/predictions.h5ad"):
            name.rename(runs / "tiny" / name.parent.name / "fold1" / name.name)
    assert [remark.split(":")[1] for remark in remarks] == [" no figure of maps", " no figure of gene spread"]
    assert all("\n" not in remark and "predictions.h5ad" in remark for remark in remarks)


def test_where_the_size_of_a_pixel_comes_from(runs: Path, tmp_path: Path) -> None:
    """From the predictions, as hist-train writes them, else from the slide's metadata; else a warning says so."""
    slide = SimpleNamespace(
        attributes={"thumbnail_downsample": 8, "spot_um": 55, "um_per_px": 0.5},
        thumbnail=np.zeros((2, 2, 3), dtype=np.uint8),
    )
    written = squidpy_picture(cast("CachedSlide", slide))["scalefactors"]
    assert written["spot_diameter_fullres"] == 110
    metadata = {"pixel_size_um_estimated": 0.25, "inter_spot_dist": 100.0, "spot_diameter": 55.0}
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata/S1.json").write_text(json.dumps(metadata))
    results = read_results([runs])
    for scale, root, size in (
        (written, None, 0.5),
        ({}, tmp_path, 0.25),
        ({}, tmp_path / "no", None),
        ({}, None, None),
    ):
        remarks: list[str] = []
        group = PaperGroup(results, list(results.runs), replace(REQUEST, data_root=root), remarks)
        assert group.um_per_px("S1", scale) == size
        assert [remark.startswith("tiny: no scale bar: ") for remark in remarks] == [True] * (size is None)


def test_no_figure_is_higher_than_a_page(runs: Path) -> None:
    """40 runs whose labels have several lines, and more genes than fit."""
    results = read_results([runs])
    many = [replace(results.runs[0], label=f"run {i}, {'with a long label ' * 4}") for i in range(40)]
    remarks: list[str] = []
    group = PaperGroup(Results(tuple(many)), many, PaperRequest(("svg",), genes=tuple(GENES[:20])), remarks)
    with paper_style():
        drawn = [*group.comparison(), *group.gene_spread()]
        fold = group.main.folds[0]
        drawn += group._scatter(fold, fold.fold.predictions, GENES[:20])
    names = [figure.name for figure in drawn]
    assert names == ["comparison-183mm", "genes-89mm", "scatter-1-183mm", "scatter-2-183mm"]
    assert all(size_mm(figure.figure)[1] <= 240 for figure in drawn)
    assert [text.split(": ")[1].split(" of ")[1] for text in remarks] == [
        "40 runs are not compared",
        "40 runs are not drawn by gene",
    ]
