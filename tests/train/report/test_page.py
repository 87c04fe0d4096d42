"""hist-report: the command, its files, and its page in a real browser."""

from __future__ import annotations

import base64
import csv
import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

import extract.cli
import train.cli
from hist_cache.runs import load_run
from tests.accessibility import serious_faults
from tests.commands import make_quick
from tests.conftest import TINY_ENCODER, write_slide
from tests.train.report.fake_runs import RIDGE, write_run
from train.report.cli import main
from train.report.results import Results
from train.report.sections import ReportRequest

Run = Callable[..., tuple[int, str]]
VALUES = {"full": (0.7, 0.72, 0.74), "no_hea": (0.68, 0.75, 0.79), "clip": (0.5, 0.52, 0.51), "meru": (0.6, 0.6, 0.6)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for i, (variant, values) in enumerate(VALUES.items()):
        write_run(root, values, change={"variant.name": variant}, predictions=True, seed=10 * i)
    return root


@pytest.fixture(scope="module")
def page_file(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        assert main([str(runs), "--out", str(out), "--region", "region", "--genes-to-plot", "GENE3,GENE5"]) == 0
    return out / "report.html"


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    """Write an empty page, for tests of what is printed."""

    def write(results: Results, folder: Path, request: ReportRequest) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "report.html").touch()
        return folder / "report.html"

    monkeypatch.setattr("train.report.index.write_report", write)


@pytest.mark.slow
def test_the_files(page_file: Path) -> None:
    names = {p.name for p in (page_file.parent / "tables").iterdir()}
    stems = {
        "metrics-pooled-tiny", "metrics-slide-mean-tiny", "metrics-complete-niches-tiny", "significance-tiny", "cost",
        "against-ridge-tiny", "checklist",
        "genes-tiny", "gains-full-over-clip", "slides-tiny", "regions-region", "region-gains-region", "radii-tiny",
    }  # fmt: skip
    assert {f"{stem}.{ending}" for stem in stems for ending in ("csv", "tex")} <= names
    with (page_file.parent / "tables/metrics-pooled-tiny.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["run"] == "full"
    drawn = {p.name for p in (page_file.parent / "figures").iterdir()}
    assert {
        "tiny-against-ridge.png",
        "tiny-ablation.png",
        "tiny-gene-gene3.png",
        "tiny-gene-gene5.png",
        "tiny-gene-panel.png",
    } <= drawn


def test_the_page_needs_nothing_else(page_file: Path) -> None:
    text = page_file.read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert "style=" not in text
    assert "url(" not in text


@pytest.mark.usefixtures("no_page")
def test_it_prints_the_tables_and_says_where_the_page_is(runs: Path, run_command: Run) -> None:
    code, text = run_command(main, runs)
    assert code == 0, text
    assert "0.720 ± 0.020" in text
    assert "p against full" in text
    assert "warning: tiny: its patients are not listed" in text
    assert str(runs / "tiny/report/report.html") in text
    assert (runs / "tiny/report/report.html").exists()
    shutil.rmtree(runs / "tiny/report")


@pytest.mark.usefixtures("no_page")
def test_csv_and_latex_alone_on_standard_output(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs), "--out", str(tmp_path), "--format", "csv", "--table", "3"]) == 0
    printed = capsys.readouterr()
    rows = list(csv.DictReader(printed.out.splitlines()))
    assert [r["run"] for r in rows if r["row"] == "run"] == ["full", "no_hea", "meru", "clip"]
    assert "report.html" in printed.err
    assert main([str(runs), "--out", str(tmp_path), "--format", "latex", "--table", "4"]) == 0
    assert capsys.readouterr().out.startswith(r"\begin{table}")


@pytest.mark.usefixtures("no_page")
def test_tables_of_the_analysis(runs: Path, tmp_path: Path, run_command: Run) -> None:
    code, text = run_command(main, runs, "--out", tmp_path, "--table", 11, "--against", "clip", "--region", "region")
    assert code == 0, text
    assert "Genes that clip predicts better than meru, region stroma" in text
    assert "Genes that clip predicts better than meru, region tumor" in text
    code, text = run_command(main, runs, "--out", tmp_path, "--table", 12, "--region", "region")
    assert code == 0, text
    assert "p, paired t-test over 2 regions" in text


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--against", "hycoclip"], "--against hycoclip: not among the runs; there are full; no_hea"),
        (["--genes-to-plot", "GENE3,NOGENE"], "--genes-to-plot NOGENE: not in the gene panel of full"),
        (["--region", "layer"], "--region layer: the predictions have no such column (slide, barcode"),
        (["--table", "12"], "--table 12 needs --region"),
        (["--table", "8"], "run hist-train --table 8 first"),
        (["--table", "16"], "--table 16: there are 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15"),
        (["--table", "11", "--region", "layer"], "--region layer: the predictions have no such column"),
        (["--table", "4", "--region", "layer"], "--region layer: the predictions have no such column"),
        (["--table", "3", "--region", "layer"], "--region layer: the predictions have no such column"),
        (["--table", "5", "--against", "clip"], "--against clip: --table 5 compares nothing; leave it out"),
        (["--data-root", "."], "--data-root .: is where --region looks for its column, and --figures for"),
    ],
)
def test_wrong_input_exits_with_2_and_one_line(runs: Path, run_command: Run, more: list[str], says: str) -> None:
    code, text = run_command(main, runs, *more)
    assert code == 2, text
    assert says in text
    assert "Traceback" not in text
    assert not (runs / "tiny/report").exists()


def test_without_runs(run_command: Run, tmp_path: Path) -> None:
    assert run_command(main)[0] == 2
    code, text = run_command(main, tmp_path)
    assert code == 2
    assert "no finished run here" in text


@pytest.mark.long
@pytest.mark.unpatched
def test_on_what_hist_train_leaves(run_command: Run, tmp_path: Path) -> None:
    for i in range(1, 5):
        write_slide(tmp_path / "hest", f"TINY{i}", seed=i)
    where = ("--cache", tmp_path / "cache")
    code, text = run_command(
        extract.cli.main, "--ids", "TINY1-4", "--data-root", tmp_path / "hest", *where,
        "--encoder", TINY_ENCODER, "--random-weights",
    )  # fmt: skip
    assert code == 0, text
    small = ("--width", 16, "--depth", 1, "--epochs", 3, "--batch-size", 16, "--n-genes", 20, "--lr", 1e-3)
    code, text = run_command(
        train.cli.main, *where, "--split", "loso", "--folds", 2, "--ablation", "full,no_hea", "--jobs", 1, *small
    )
    assert code == 0, text
    code, text = run_command(main, tmp_path / "runs")
    assert code == 0, text
    assert "encoder timm:test_vit has random weights" in text
    page = (tmp_path / "runs/custom/report/report.html").read_text()
    assert "without entailment" in page
    assert page.count("<img ") >= 8
    assert "All 20 genes of all folds." in page


@pytest.fixture
def visit(browser: Any, page_file: Path) -> Iterator[Callable[..., Any]]:
    """Open a page; at the end, nothing may have been complained of or asked from elsewhere."""
    troubles: list[str] = []
    pages = []

    def opened(file: Path = page_file, **options: Any) -> Any:
        page = browser.new_page(**options)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("data:", file.as_uri())) else troubles.append(r.url))
        page.goto(file.as_uri())
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert not troubles


def first_column(page: Any, table: str) -> list[str]:
    return page.locator(f"#{table} tbody > tr:first-child > th").all_inner_texts()


def test_every_picture_is_there(visit: Callable[..., Any]) -> None:
    page = visit()
    page.evaluate("for (const box of document.querySelectorAll('details')) box.open = true")
    widths = page.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
    assert len(widths) == 14
    assert min(widths) > 0
    assert page.evaluate("[...document.images].every(i => i.alt.length > 10)")
    links = page.evaluate("[...document.querySelectorAll('a.download')].map(a => a.href.slice(0, 11))")
    assert set(links) == {"data:image/"}
    targets = page.evaluate("[...document.querySelectorAll('nav a')].map(a => !!document.querySelector(a.hash))")
    assert all(targets)
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_sorting_by_click(visit: Callable[..., Any]) -> None:
    page = visit()
    table = "metrics-pooled-tiny"
    before = first_column(page, table)
    assert before[:4] == ["full", "no_hea", "meru", "clip"]
    head = page.locator(f"#{table} thead th").nth(1)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"  # a PCC: the best first
    assert first_column(page, table) == [
        "no_hea", "full", "meru", "clip", "ridge, PCA-256", "full, permuted", "train mean",
    ]  # fmt: skip
    under = page.locator(f"#{table} tbody").first.locator("tr.under th").all_inner_texts()
    assert under == ["p against full"]  # moved with its run
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert first_column(page, table)[-1] == "no_hea"
    errors = page.locator(f"#{table} thead th").nth(3)
    errors.locator("button").click()
    assert errors.get_attribute("aria-sort") == "ascending"  # an error: the smallest first
    assert head.get_attribute("aria-sort") == "none"
    for _ in range(2):
        errors.locator("button").click()
    assert first_column(page, table) == before


def test_sorting_by_keyboard_and_names_as_people_count(visit: Callable[..., Any]) -> None:
    page = visit()
    page.locator("#genes-tiny thead button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#genes-tiny thead th").first.get_attribute("aria-sort") == "ascending"
    assert first_column(page, "genes-tiny")[:3] == ["GENE0", "GENE1", "GENE2"]  # not GENE10
    page.keyboard.press("Space")
    assert first_column(page, "genes-tiny")[0] == "GENE59"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    values = [float(v) for v in page.locator("#genes-tiny tbody td:nth-child(2)").all_inner_texts()]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_and_what_axe_says(visit: Callable[..., Any], scheme: str) -> None:
    page = visit(color_scheme=scheme)
    style = "(e, p) => getComputedStyle(e)[p].match(/[\\d.]+/g).slice(0, 3).map(Number)"
    ground, text, card = (
        page.locator(what).first.evaluate(f"e => ({style})(e, '{value}')")
        for what, value in (("body", "backgroundColor"), ("body", "color"), (".card", "backgroundColor"))
    )
    if scheme == "light":
        assert min(ground) > 240 > 90 > max(text)
    else:
        assert max(ground) < 60 < 180 < min(text)
    assert card == [255, 255, 255]  # figures keep their white
    assert serious_faults(page, ["color-contrast"] if scheme == "dark" else []) == []


def shown_map(page: Any, values: np.ndarray, scale: np.ndarray, canvas: int, coords: np.ndarray) -> None:
    """The map has the colours of matplotlib at its spots, but for its opacity over white or tissue."""
    page.wait_for_function("document.querySelector('.maps').dataset.drawn.endsWith('with picture')")
    low, high = np.quantile(scale, [0.01, 0.99])
    colors = colormaps["viridis"]((values - low) / (high - low), bytes=True)[:, :3].astype(int)
    box = page.locator(".trio canvas").nth(canvas)
    width, height = box.evaluate("c => [c.width, c.height]")
    margin = 0.08 * np.ptp(coords, axis=0).max() + 1.25 * 150 / 2
    first, last = coords.min(0) - margin, coords.max(0) + margin
    zoom = min(width / (last - first)[0], height / (last - first)[1])
    places = np.array([width, height]) / 2 + (coords - (first + last) / 2) * zoom
    png = base64.b64decode(box.evaluate("c => c.toDataURL().split(',')[1]"))
    x, y = places.round().astype(int).T
    drawn = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int)[y, x]
    assert np.abs(drawn - colors).max() <= 0.08 * 255 + 2


def test_a_map_of_any_gene_fold_and_run(visit: Callable[..., Any], runs: Path) -> None:
    page = visit()
    assert page.locator(".said").inner_text().startswith("GENE3 on slide S0, fold 0, full: PCC ")  # the one named first
    page.locator(".pick-run").select_option("clip")
    page.get_by_label("Fold", exact=True).select_option("2")
    page.get_by_label("Gene", exact=True).fill("gene17")
    assert page.get_by_label("Slide", exact=True).input_value() == "S2"
    [folder] = (runs / "tiny").glob("clip-*")
    table = load_run(folder).folds[2].predictions[:, "GENE17"]
    predicted, truth = np.asarray(table.X)[:, 0], table.layers["truth"][:, 0]
    pcc = np.corrcoef(predicted, truth)[0, 1]
    assert f"GENE17 on slide S2, fold 2, clip: PCC {pcc:.3f} over 20 spots, rank " in page.locator(".said").inner_text()
    shown_map(page, truth, truth, 1, table.obsm["spatial"])
    shown_map(page, predicted, truth, 2, table.obsm["spatial"])
    assert [float(page.locator(f".legend .{end}").inner_text()) for end in ("low", "high")] == pytest.approx(
        np.quantile(truth, [0.01, 0.99]), abs=0.006
    )
    page.locator(".pick-gene").fill("NOGENE")
    page.keyboard.press("Enter")
    assert page.locator(".said").inner_text() == "No gene NOGENE here; 60 genes can be chosen."
    for _ in range(60):
        page.get_by_text("Better predicted").click()
    best = page.locator("datalist option").first
    assert page.locator(".pick-gene").input_value() == best.get_attribute("value")
    assert "rank 1 of 60 genes" in page.locator(".said").inner_text()
    page.get_by_text("Worse predicted").press("Enter")
    assert "rank 2 of 60 genes" in page.locator(".said").inner_text()


def test_without_scripts_there_are_figures(browser: Any, page_file: Path) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(page_file.as_uri())
    assert not page.locator(".maps").is_visible()
    assert page.locator("noscript p").is_visible()
    assert page.get_by_alt_text("Maps of GENE3 on S0").is_visible()
    page.close()


@pytest.mark.parametrize("width", [375, 768, 1280])
def test_the_page_never_scrolls_sideways(visit: Callable[..., Any], width: int) -> None:
    page = visit(viewport={"width": width, "height": 800})
    page.evaluate("for (const box of document.querySelectorAll('details')) box.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    if width == 375:  # the table scrolls in its own box
        box = page.locator("#metrics-pooled-tiny .scroll")
        assert box.evaluate("e => e.scrollWidth > e.clientWidth")
        assert page.locator("#checklist .scroll").evaluate("e => e.scrollWidth <= e.clientWidth")
    if width == 1280:  # a long label makes room for the numbers
        labels = page.locator("#against-ridge-tiny th[scope=row]")
        labels.evaluate_all("es => es.forEach(e => e.textContent += ', strong recipe, mean of 3 seeds, no edge spots')")
        assert page.locator("#against-ridge-tiny .scroll").evaluate("e => e.scrollWidth <= e.clientWidth")


def section_titles(page: Any) -> list[str]:
    return page.locator("section > h2").all_inner_texts()


@pytest.mark.long
@pytest.mark.usefixtures("quick")
def test_a_model_that_does_not_learn_beside_hist(visit: Callable[..., Any], runs: Path, tmp_path: Path) -> None:
    ridge = write_run(tmp_path, (0.8, 0.81, 0.79), change=RIDGE, predictions=True)
    assert main([str(runs), str(ridge), "--out", str(tmp_path / "out"), "--region", "region"]) == 0
    page = visit(tmp_path / "out/report.html")
    page.evaluate("for (const box of document.querySelectorAll('details')) box.open = true")
    assert first_column(page, "metrics-pooled-tiny")[:5] == ["full", "no_hea", "meru", "clip", "ridge"]
    assert "Highest PCC@50: ridge, 0.700" in page.locator("#part-metrics .lead").inner_text()
    assert "ridge" in first_column(page, "cost")
    assert first_column(page, "radii-tiny") == ["full", "no_hea", "meru", "clip"]
    captions = page.locator("figcaption strong").all_inner_texts()
    assert {"meru: training.", "Methods side by side."} <= set(captions)
    assert "ridge" in page.locator(".pick-run option").all_inner_texts()
    assert not {"ridge: training.", "ridge: geometry."} & set(captions)
    widths = page.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
    assert min(widths) > 0
    assert {"ridge", "full"} <= set(page.locator("#configuration-and-origin dl:not(.origins) dt").all_inner_texts())


@pytest.mark.usefixtures("quick")
def test_sections_that_no_run_has_are_left_out(visit: Callable[..., Any], page_file: Path, tmp_path: Path) -> None:
    write_run(tmp_path, (0.8, 0.81, 0.79), change=RIDGE, predictions=True)
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    page = visit(tmp_path / "out/report.html")
    expected = ["Metrics", "Maps", "Genes", "Slides", "What reviewers ask for", "Models", "Memory and time"]
    expected += ["Configuration"]
    assert [title for title in section_titles(page) if title != "Before you read on"] == expected
    hist = section_titles(visit(page_file))
    assert [title for title in hist if title in ("Geometry", "Training")] == ["Geometry", "Training"]
    assert hist[1:3] == ["Metrics", "Against ridge"]


def test_it_can_be_printed(visit: Callable[..., Any]) -> None:
    page = visit()
    assert page.pdf().startswith(b"%PDF")
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()


@pytest.mark.slow
def test_one_run_of_one_fold_and_runs_of_different_kinds(tmp_path: Path, run_command: Run) -> None:
    write_run(tmp_path / "one", (0.7,), predictions=True)
    code, text = run_command(main, tmp_path / "one")
    assert code == 0, text
    assert "0.700" in text
    assert "±" not in text.split("Memory and time")[0].split("mean ± std")[0]
    for change in ({}, {"neighbors": 18}, {"dataset": "other"}, {"dataset": "other", "variant.name": "clip"}):
        write_run(tmp_path / "many", (0.7, 0.6), change=change, predictions=True)
    code, text = run_command(main, tmp_path / "many", "--out", tmp_path / "out")
    assert code == 0, text
    assert "Metrics, other" in text
    page = (tmp_path / "out/report.html").read_text()
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {"part-metrics-other", "part-metrics-tiny"} <= set(ids)
