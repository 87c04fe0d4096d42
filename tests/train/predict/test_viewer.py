"""The page of a predicted slide: what is in the file, and what a real browser shows of it."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from hist_cache.errors import InputError
from tests.accessibility import serious_faults
from tests.train.predict.predicted_tables import DIAMETER, DOWNSAMPLE, PITCH, UM_PER_PX, predicted_table
from train.metrics import gene_pcc
from train.predict import viewer
from train.predict.predicted import SlidePicture, nearest_distance
from train.predict.viewer import write_viewer

HOSTILE = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", "\"&amp;'#$", "TP53", "HLA-A"]


def page_data(file: Path) -> dict[str, Any]:
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', file.read_text(), re.DOTALL)
    assert text is not None
    return json.loads(text[1])


def decoded(stored: dict[str, Any]) -> np.ndarray:
    codes = np.frombuffer(base64.b64decode(stored["codes"]), dtype="<u2").astype(float)
    values = stored["low"] + codes / 65534 * (stored["high"] - stored["low"])
    return np.where(codes == 65535, np.nan, values)


@pytest.fixture(scope="module")
def table() -> anndata.AnnData:
    return predicted_table(truth=True, distance=True, disagreement=True)


@pytest.fixture(scope="module")
def page_file(table: anndata.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_viewer(tmp_path_factory.mktemp("viewer") / "SLIDE1.html", table)


def test_the_page_needs_nothing_else(page_file: Path) -> None:
    text = page_file.read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert "style=" not in text
    assert "url(" not in text


def test_the_numbers_come_back(table: anndata.AnnData, page_file: Path) -> None:
    data = page_data(page_file)
    for gene in data["genes"]:
        column = table.var_names.get_loc(gene["name"])
        for name, layer in gene["layers"].items():
            values = np.asarray(table.X if name == "predicted" else table.layers[name])[:, column]
            assert np.abs(decoded(layer) - values).max() <= np.ptp(values) / 65534
        both = np.concatenate([np.asarray(table.X)[:, column], table.layers["truth"][:, column]])
        common = np.percentile(both, [2, 98])
        np.testing.assert_allclose(gene["layers"]["predicted"]["range"], common, rtol=1e-6)
        assert gene["layers"]["truth"]["range"] == gene["layers"]["predicted"]["range"]
        assert gene["pcc"] == pytest.approx(np.corrcoef(table.X[:, column], table.layers["truth"][:, column])[0, 1])
    np.testing.assert_allclose(decoded(data["spots"]["distance"]), table.obs["distance"], atol=1e-3)
    assert data["pitch"] == PITCH
    assert (data["picture"]["width"], data["picture"]["height"]) == (13 * PITCH, 11 * PITCH)


def test_missing_and_constant_values(tmp_path: Path) -> None:
    table = predicted_table(genes=3)
    table.X[:4, 0] = np.nan
    table.X[:, 1] = np.nan
    table.X[:, 2] = 7
    genes = page_data(write_viewer(tmp_path / "a.html", table, genes=list(table.var_names)))["genes"]
    np.testing.assert_allclose(decoded(genes[0]["layers"]["predicted"]), table.X[:, 0], atol=1e-3)
    assert np.isnan(decoded(genes[1]["layers"]["predicted"])).all()
    assert (decoded(genes[2]["layers"]["predicted"]) == 7).all()
    assert genes[2]["layers"]["predicted"]["range"] == [7, 7]


def test_one_spot(tmp_path: Path) -> None:
    data = page_data(write_viewer(tmp_path / "a.html", predicted_table(1, 1)))
    assert data["pitch"] == DIAMETER
    assert nearest_distance(np.zeros((1, 2))) == 0


def test_a_page_holds_as_many_genes_as_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = predicted_table(40, 50, genes=20)
    table.X[:, 3] *= 3
    limit = 150_000
    monkeypatch.setattr(viewer, "MAX_PAGE_BYTES", limit)
    caplog.set_level(logging.INFO)
    file = write_viewer(tmp_path / "a.html", table)
    data = page_data(file)
    assert limit - 6000 < file.stat().st_size <= limit
    assert 5 < len(data["genes"]) < 20
    assert data["genes"][0]["name"] == "GENE3"
    said = f"The {len(data['genes'])} of 20 predicted genes that vary most in space"
    assert said in file.read_text()
    assert said in caplog.text
    all_named = write_viewer(tmp_path / "b.html", table, genes=list(table.var_names))
    assert [gene["name"] for gene in page_data(all_named)["genes"]] == list(table.var_names)


def test_named_genes_and_one_that_is_not_there(tmp_path: Path, table: anndata.AnnData) -> None:
    data = page_data(write_viewer(tmp_path / "a.html", table, genes=["GENE2", "GENE0", "GENE2"]))
    assert [gene["name"] for gene in data["genes"]] == ["GENE2", "GENE0"]
    with pytest.raises(InputError, match=r"^SLIDE1: TP53 is not among its 5 predicted genes \(GENE0, "):
        write_viewer(tmp_path / "b.html", table, genes=["TP53"])
    assert not (tmp_path / "b.html").exists()


def test_a_large_picture_is_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "MAX_PICTURE_PX", 100)
    picture = SlidePicture(np.zeros((300, 150, 3), dtype=np.uint8), 10.5)
    data = page_data(write_viewer(tmp_path / "a.html", predicted_table(2, 2), picture))["picture"]
    with Image.open(io.BytesIO(base64.b64decode(data["uri"].partition(",")[2]))) as image:
        assert image.size == (50, 100)
    assert (data["width"], data["height"]) == (1575, 3150)


def test_x_may_be_a_file(tmp_path: Path, table: anndata.AnnData, page_file: Path) -> None:
    table.write_h5ad(tmp_path / "SLIDE1.h5ad")
    backed = anndata.read_h5ad(tmp_path / "SLIDE1.h5ad", backed="r")
    assert page_data(write_viewer(tmp_path / "a.html", backed)) == page_data(page_file)
    backed.file.close()


@pytest.fixture
def visit(browser: Any, page_file: Path) -> Iterator[Callable[..., Any]]:
    """Open a page; at the end, nothing may have been complained of or asked from elsewhere."""
    troubles: list[str] = []
    pages = []

    def opened(file: Path = page_file, fragment: str = "", **options: Any) -> Any:
        page = browser.new_page(**{"viewport": {"width": 1000, "height": 640}, **options})
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(dialog.message))
        page.on("request", lambda r: None if r.url.startswith(("data:", file.as_uri())) else troubles.append(r.url))
        page.goto(file.as_uri() + fragment)
        page.wait_for_selector("main[aria-busy=false]")
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert not troubles


def place_of(page: Any, xy: tuple[float, float], panel: str = "map") -> tuple[float, float]:
    """Where level-0 px lie on the page, from the view in the address."""
    page.wait_for_timeout(250)  # until the address is written
    parts = dict(part.split("=") for part in page.url.partition("#")[2].split("&"))
    box = page.locator(f"#{panel} canvas").bounding_box()
    centre = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    scale = float(parts["scale"])
    return centre[0] + (xy[0] - float(parts["x"])) * scale, centre[1] + (xy[1] - float(parts["y"])) * scale


def colors_at(page: Any, *places: tuple[float, float], panel: str = "map") -> list[np.ndarray]:
    on_page = [place_of(page, xy, panel) for xy in places]
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return [np.array(shot.getpixel((round(x), round(y))), dtype=int) for x, y in on_page]


def color_at(page: Any, xy: tuple[float, float], panel: str = "map") -> np.ndarray:
    return colors_at(page, xy, panel=panel)[0]


def viridis(table: anndata.AnnData, gene: str, spot: int, layer: str | None = None) -> np.ndarray:
    """The colour that matplotlib gives to a value between the 2nd and 98th percentile of measured and predicted."""
    column = table.var_names.get_loc(gene)
    both = np.concatenate([np.asarray(table.X)[:, column], table.layers["truth"][:, column]])
    low, high = np.percentile(both, [2, 98])
    value = (table.X if layer is None else table.layers[layer])[spot, column]
    return np.array(colormaps["viridis"]((value - low) / (high - low), bytes=True)[:3], dtype=int)


def near(a: np.ndarray, b: np.ndarray, by: int = 4) -> bool:
    return bool(np.abs(a - b).max() <= by)


def choose(page: Any, gene: str) -> None:
    page.locator("#search").fill(gene)
    page.keyboard.press("Enter")


def spot_place(table: anndata.AnnData, spot: int) -> tuple[float, float]:
    x, y = table.obsm["spatial"][spot]
    return float(x), float(y)


@pytest.mark.slow
def test_spots_have_the_colours_of_their_values(visit: Callable[..., Any], table: anndata.AnnData) -> None:
    page = visit()
    for gene in ("GENE1", "GENE4"):
        choose(page, gene)
        assert page.locator("#title").inner_text() == f"{gene}, predicted"
        spots = (0, 7, 60, 119)
        for spot, color in zip(spots, colors_at(page, *(spot_place(table, spot) for spot in spots)), strict=True):
            assert near(color, viridis(table, gene, spot)), (gene, spot)
    assert near(color_at(page, spot_place(table, 0), "side"), np.array([230, 120, 220]))  # the H&E alone
    page.get_by_label("Measured").check()
    assert near(color_at(page, spot_place(table, 7)), viridis(table, "GENE4", 7, "truth"))
    column = np.asarray(table.X)[:, [4]], table.layers["truth"][:, [4]]
    assert page.locator("#pcc").inner_text() == f"PCC, predicted and measured: {gene_pcc(*column)[0]:.2f}"
    low, high = np.percentile(np.concatenate(column), [2, 98])
    assert page.locator(".ends").inner_text().split() == [f"{low:.2f}", f"{high:.2f}"]
    assert page.locator("#unit").inner_text() == "log2(1 + count)"
    page.get_by_label("Distance to the training data").check()
    distance = table.obs["distance"].to_numpy()
    ends = np.percentile(distance, [2, 98])
    expected = colormaps["viridis"]((distance[60] - ends[0]) / np.ptp(ends), bytes=True)[:3]
    assert near(color_at(page, spot_place(table, 60)), np.array(expected, dtype=int))
    choose(page, "GENE0")  # a gene chosen now is shown
    assert page.locator("#title").inner_text() == "GENE0, predicted"


@pytest.mark.slow
def test_overlay_and_opacity(visit: Callable[..., Any], table: anndata.AnnData) -> None:
    page = visit()
    choose(page, "GENE2")
    page.get_by_label("Map on the H&E").check()
    assert not page.locator("#side").is_visible()
    tissue, spot = np.array([230, 120, 220]), viridis(table, "GENE2", 5)
    for percent in (100, 50, 0):
        page.locator("#opacity").fill(str(percent))
        share = percent / 100
        assert near(color_at(page, spot_place(table, 5)), np.rint(share * spot + (1 - share) * tissue)), percent
    assert page.locator("#percent").inner_text() == "0 %"


@pytest.mark.slow
def test_moving_and_zooming_both_panels(visit: Callable[..., Any], table: anndata.AnnData) -> None:
    page = visit()
    choose(page, "GENE0")
    middle = page.locator("#map canvas").bounding_box()
    middle = middle["x"] + middle["width"] / 2, middle["y"] + middle["height"] / 2
    spot = 50
    x, y = place_of(page, spot_place(table, spot))
    page.mouse.move(x, y)
    page.mouse.wheel(0, -600)
    still = place_of(page, spot_place(table, spot))
    assert np.hypot(still[0] - x, still[1] - y) < 1.5  # what is under the pointer stays
    assert near(color_at(page, spot_place(table, spot)), viridis(table, "GENE0", spot))
    page.mouse.down()
    page.mouse.move(*middle, steps=3)
    page.mouse.up()
    moved = place_of(page, spot_place(table, spot))
    assert np.hypot(moved[0] - middle[0], moved[1] - middle[1]) < 2
    assert near(color_at(page, spot_place(table, spot)), viridis(table, "GENE0", spot))
    lower = (float(table.obsm["spatial"][spot][0]), 6 * PITCH)  # the picture's halves meet at 5.5 pitches
    assert near(color_at(page, (lower[0], 5 * PITCH), "side"), np.array([230, 120, 220]))
    assert near(color_at(page, lower, "side"), np.array([230, 200, 220]))
    for _ in range(12):  # spots so large that they are drawn otherwise
        page.locator("#closer").click()
    assert near(color_at(page, spot_place(table, spot)), viridis(table, "GENE0", spot))
    page.locator("#all").click()
    assert np.hypot(*np.subtract(place_of(page, spot_place(table, spot)), (x, y))) < 2
    page.locator("#map canvas").focus()
    page.keyboard.press("ArrowRight")
    assert place_of(page, spot_place(table, spot))[0] == pytest.approx(x - 60, abs=2)
    page.keyboard.press("+")
    assert "GENE0, predicted" in page.locator("#tip").inner_text() or not page.locator("#tip").is_visible()
    page.keyboard.press("0")
    assert place_of(page, spot_place(table, spot))[0] == pytest.approx(x, abs=2)


@pytest.mark.slow
def test_hovering_and_the_scale_bar(visit: Callable[..., Any], table: anndata.AnnData) -> None:
    page = visit(fragment="#gene=GENE3&view=overlay")
    assert page.locator("#title").inner_text() == "GENE3, predicted"
    outside = int(np.flatnonzero(table.obs["out_of_distribution"])[0])
    for spot in (outside, int(np.flatnonzero(~table.obs["out_of_distribution"])[0])):
        page.mouse.move(*place_of(page, spot_place(table, spot)))
        text = page.locator("#tip").inner_text()
        assert text.split("\n")[0] == table.obs_names[spot]
        assert f"GENE3, predicted: {table.X[spot, 3]:.2f}" in text
        assert f"GENE3, measured: {table.layers['truth'][spot, 3]:.2f}" in text
        assert f"Distance to the training data: {table.obs['distance'].iloc[spot]:.2f}" in text
        assert ("out of distribution" in text) == (spot == outside)
    page.mouse.move(*place_of(page, (1.5 * PITCH, 1.5 * PITCH)))  # between spots
    assert not page.locator("#tip").is_visible()
    x = [place_of(page, (px, 0))[0] for px in (0, 1000)]
    length = page.locator("#length").inner_text()
    um = float(length.split()[0]) * (1000 if length.endswith("mm") else 1)
    width = page.locator("#bar").bounding_box()["width"]
    assert width / (x[1] - x[0]) * 1000 * UM_PER_PX == pytest.approx(um, rel=0.01)


def test_search_by_keyboard_and_the_address(visit: Callable[..., Any], page_file: Path) -> None:
    page = visit()
    search, shown = page.locator("#search"), page.locator("#genes li")
    first = [shown.nth(i).locator("em").inner_text() for i in range(5)]
    search.fill("ene")
    assert page.locator("#matches").inner_text() == "5 of 5 genes, with their PCC"
    page.keyboard.press("ArrowDown")
    assert page.locator("#genes li[aria-selected=true] em").inner_text() == first[1]
    assert search.get_attribute("aria-activedescendant") == shown.nth(1).get_attribute("id")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert page.locator("#what").inner_text() == f"{first[0]}, predicted"
    search.fill("4")
    assert shown.count() == 1
    page.keyboard.press("ArrowDown")
    assert page.locator("#what").inner_text() == "GENE4, predicted"
    search.fill("nothing")
    page.keyboard.press("Enter")
    assert page.locator("#what").inner_text() == "GENE4, predicted"
    page.keyboard.press("Escape")
    assert shown.count() == 5
    shown.filter(has_text="GENE2").click()
    page.locator("#farther").click()
    page.get_by_label("Measured").check()
    page.wait_for_timeout(300)
    again = visit(fragment=page.url.removeprefix(page_file.as_uri()))
    again.wait_for_timeout(300)
    assert again.url == page.url
    assert again.locator("#title").inner_text() == "GENE2, measured"
    again.evaluate("location.hash = '#gene=GENE1&scale=x&opacity=1000&layer=none'")
    again.wait_for_timeout(300)
    assert again.locator("#title").inner_text() == "GENE1, measured"


def test_names_are_shown_as_they_are(visit: Callable[..., Any], tmp_path: Path) -> None:
    slide = "</title><script>alert(3)</script>"
    table = predicted_table(3, 3, genes=HOSTILE, slide=slide)
    table.obs_names = [f"</script><b>{i}" for i in range(9)]
    table.uns["expression"] = "<b>log2</b>"
    table.uns["hist_predict"]["run"] = "{{ 7 * 7 }}<i>"
    page = visit(write_viewer(tmp_path / "a.html", table))
    assert page.locator("h1").inner_text() == slide
    assert page.title() == f"{slide}: predicted expression"
    assert "{{ 7 * 7 }}<i>" in page.locator("header p").inner_text()
    assert sorted(page.locator("#genes em").all_inner_texts()) == sorted(HOSTILE)
    for name in HOSTILE:
        choose(page, name)
        assert page.locator("#title").inner_text() == f"{name}, predicted"
    page.mouse.move(*place_of(page, spot_place(table, 4)))
    assert page.locator("#tip").inner_text().startswith("</script><b>4\nHLA-A, predicted: ")
    assert page.locator("b, i").count() == 0
    assert not page.locator("#layers").is_visible()  # there is one alone


def test_on_a_phone(visit: Callable[..., Any], table: anndata.AnnData) -> None:
    page = visit(viewport={"width": 375, "height": 700}, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    canvas = page.locator("#map canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    before = place_of(page, (0, 0)), place_of(page, (1000, 0))
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = page.context.new_cdp_session(page)

    def touch(kind: str, apart: float) -> None:
        points = [{"x": middle[0] + sign * apart, "y": middle[1], "id": k} for k, sign in enumerate((-1, 1))]
        event = {"type": kind, "touchPoints": [] if kind == "touchEnd" else points}
        session.send("Input.dispatchTouchEvent", event)

    touch("touchStart", 30)
    for apart in (40, 50, 60):
        touch("touchMove", apart)
    touch("touchEnd", 60)
    after = place_of(page, (0, 0)), place_of(page, (1000, 0))
    assert (after[1][0] - after[0][0]) / (before[1][0] - before[0][0]) == pytest.approx(2, rel=0.02)


def test_everything_has_a_label(visit: Callable[..., Any]) -> None:
    page = visit()
    assert serious_faults(page) == []
    assert serious_faults(visit(color_scheme="dark"), ["color-contrast"]) == []
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, button, canvas:not([aria-hidden]), ul[role]')]"
        ".filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map(e => e.outerHTML)"
    )
    assert unnamed == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    luminance = """(c) => {
        const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map((v) => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    }"""
    for what in (".soft", "header p", "label", "#genes li[aria-selected=true]", "#tip"):
        text, ground = page.locator(what).first.evaluate(
            f"e => {{ const s = getComputedStyle(e), own = s.backgroundColor;"
            f"return [s.color, own === 'rgba(0, 0, 0, 0)' ? 'rgb(255, 255, 255)' : own].map({luminance}); }}"
        )
        light, dark = max(text, ground), min(text, ground)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, what


def test_the_picture_given_lies_under_the_spots(visit: Callable[..., Any], tmp_path: Path) -> None:
    table = predicted_table(4, 4)
    pixels = np.full((250, 250, 3), 255, dtype=np.uint8)
    pixels[95:106, 145:156] = 0  # around (600, 400), where a spot is, with 4 level-0 px a px
    page = visit(write_viewer(tmp_path / "a.html", table, SlidePicture(pixels, DOWNSAMPLE / 2)))
    assert color_at(page, (600, 400), "side").max() < 40
    assert color_at(page, (600, 500), "side").min() > 215
