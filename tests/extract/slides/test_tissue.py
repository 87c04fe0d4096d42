import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from scipy import ndimage

from extract.slides.readers import open_image
from extract.slides.tissue import MASK_UM, TissueMask, find_tissue, otsu
from hist_cache.demo.slides import write_demo
from tests.conftest import SHARED, needs_shared

SIDE = 500  # px of an overview with 10 um a pixel
SIZE = (10 * SIDE, 10 * SIDE)
GLASS = np.array([243.0, 242.0, 244.0])
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])  # haematoxylin, eosin (Ruifrok and Johnston 2001)
CENTER = np.hypot(*(np.mgrid[:SIDE, :SIDE] - SIDE / 2 + 0.5))
DISC = CENTER < 150
DISC_MM2 = np.pi * 1.5**2


def section(strength: float = 1.0, where: np.ndarray = DISC) -> np.ndarray:
    """Cells in stroma on glass, mixed by Beer-Lambert's law: (h, w, 3) float."""
    rng = np.random.default_rng(0)
    cells = ndimage.gaussian_filter(rng.standard_normal(where.shape), 1.5)
    amounts = np.stack([0.15 + 0.25 * (cells > 0.1), 0.12 + 0.1 * rng.random(where.shape)], axis=-1)
    density = amounts @ STAINS * strength * where[..., None]
    return GLASS * 10**-density


def scanned(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels + np.random.default_rng(1).normal(0, 2, pixels.shape), 0, 255).astype(np.uint8)


def painted(draw: Callable[[PIL.ImageDraw.ImageDraw], object]) -> np.ndarray:
    picture = PIL.Image.fromarray(scanned(section()))
    draw(PIL.ImageDraw.Draw(picture))
    return np.asarray(picture)


def found(overview: np.ndarray) -> TissueMask:
    return find_tissue(overview, SIZE, 1.0)


@pytest.mark.parametrize("strength", [0.4, 1.0, 2.0])
@pytest.mark.parametrize("lamp", [(1, 1, 1), (0.8, 0.8, 0.8), (1, 0.93, 0.97)])
def test_tissue_of_any_strength_under_any_lamp(strength: float, lamp: tuple[float, float, float]) -> None:
    mask = found(scanned(section(strength) * lamp))
    assert mask.pixels.shape == (SIDE, SIDE)
    assert (mask.pixels == DISC).mean() > 0.99
    assert mask.area_mm2 == pytest.approx(DISC_MM2, rel=0.05)


@pytest.mark.parametrize("pixels", [
    np.full((SIDE, SIDE, 3), 255.0),
    np.zeros((SIDE, SIDE, 3)),
    np.ones((SIDE, SIDE, 1)) * GLASS,
    np.linspace(175, 245, SIDE)[:, None, None] * np.ones((SIDE, SIDE, 3)),
    np.linspace(0.8, 1, SIDE)[:, None, None] * np.ones((SIDE, SIDE, 1)) * [235, 218, 238],  # as on real slides
    GLASS * np.where(ndimage.gaussian_filter(np.random.default_rng(0).random((SIDE, SIDE, 1)), 1) > 0.6, 0.4, 1),
], ids=["white", "black", "glass", "gradient", "tinted", "dust"])  # fmt: skip
def test_empty_slides_have_none(pixels: np.ndarray) -> None:
    assert not found(scanned(pixels)).pixels.any()


@pytest.mark.parametrize("color", [(40, 60, 190), (110, 130, 215), (30, 130, 70), (25, 25, 28)])
def test_ink_is_not_tissue(color: tuple[int, int, int]) -> None:
    beside = painted(lambda draw: draw.line([(20, 20), (480, 40), (470, 470)], fill=color, width=12))
    assert (found(beside).pixels == DISC).mean() > 0.99
    across = found(painted(lambda draw: draw.line([(250, 0), (250, 499)], fill=color, width=12))).pixels
    assert not across[:, 246:254].any()
    assert (across == DISC)[:, np.r_[:236, 264:500]].mean() > 0.99


def test_borders_and_padding_do_not_matter() -> None:
    pixels = scanned(section())
    pixels[:60], pixels[:, -70:] = 0, 255
    assert (found(pixels).pixels == DISC).mean() > 0.99


def test_specks_go_and_holes_are_filled_unless_they_are_large() -> None:
    specks = (CENTER > 200) & (np.hypot(*(np.mgrid[:SIDE, :SIDE] % 100 - 50)) < 8)
    small, large = (np.hypot(*(np.mgrid[:SIDE, :SIDE] - [[[200]], [[x]]])) < r for x, r in ((180, 15), (290, 40)))
    mask = found(scanned(section(where=(DISC | specks) & ~small & ~large))).pixels
    assert (mask == (DISC & ~large)).mean() > 0.99
    assert not mask[CENTER > 170].any()
    assert mask[small].all()


def test_a_slide_of_nothing_but_tissue() -> None:
    assert found(scanned(section(where=np.ones_like(DISC)))).pixels.mean() > 0.99


def test_masks_have_pixels_of_a_stated_size() -> None:
    fine = np.asarray(PIL.Image.fromarray(scanned(section())).resize((1500, 1500)))
    mask = find_tissue(fine, (15_000, 15_000), 1 / 3)  # 3.3 um a pixel
    assert mask.pixels.shape == (SIDE, SIDE)
    assert mask.width * mask.um_per_px / mask.pixels.shape[1] == pytest.approx(MASK_UM)
    assert (mask.pixels == DISC).mean() > 0.99
    coarse = scanned(section()).reshape(250, 2, 250, 2, 3).mean(axis=(1, 3)).astype(np.uint8)
    assert find_tissue(coarse, SIZE, 1.0).pixels.shape == (250, 250)


def test_points_on_a_mask() -> None:
    mask = TissueMask(np.array([[True, False], [False, True]]), 100, 50, 1.0)
    points = np.array([[[0, 0], [49.9, 24.9]], [[50, 0], [99.9, 49.9]], [[100, 49], [-0.1, 0]]])
    assert mask.contains(points).tolist() == [[True, True], [False, True], [False, False]]


def test_otsu_is_the_best_division() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 0.1, 3000), rng.normal(1, 0.2, 500)]).astype(np.float32)
    tried = np.linspace(-0.2, 1.4, 400)
    within = [
        (values <= t).sum() * values[values <= t].var() + (values > t).sum() * values[values > t].var() for t in tried
    ]
    assert otsu(values) == pytest.approx(tried[np.argmin(within)], abs=0.02)
    assert otsu(np.zeros(10, dtype=np.float32)) == pytest.approx(0, abs=0.5)


@pytest.mark.slow
def test_spots_of_the_demo_lie_on_tissue(tmp_path: Path) -> None:
    write_demo(tmp_path, ["DEMO2"])
    assert share_of_spots(tmp_path, "DEMO2")[0] > 0.96


@pytest.mark.long
@needs_shared
@pytest.mark.parametrize("slide", ["SPA138", "SPA139", "SPA140", "SPA141"])
def test_measured_spots_of_real_slides_lie_on_tissue(slide: str) -> None:
    inside, beyond = share_of_spots(SHARED / "hest", slide)
    assert inside > 0.98
    assert beyond < 0.01


def share_of_spots(root: Path, slide: str) -> tuple[float, float]:
    """Share of the measured spots on tissue, and share of the tissue farther than a pitch from all of them."""
    metadata = json.loads((root / "metadata" / f"{slide}.json").read_text())
    um_per_px = metadata["pixel_size_um_estimated"]
    image = open_image(slide, root / "wsis" / f"{slide}.tif")
    mask = find_tissue(image.overview(), (image.width, image.height), um_per_px)
    with h5py.File(root / "st" / f"{slide}.h5ad") as table:
        coords = np.asarray(table["obsm/spatial"], dtype=np.float64)
    h, w = mask.pixels.shape
    free = np.ones((h, w), dtype=bool)
    free[tuple((coords[:, ::-1] * [h / image.height, w / image.width]).astype(int).T)] = False
    far = ndimage.distance_transform_edt(free) * MASK_UM > metadata["inter_spot_dist"]
    return float(mask.contains(coords).mean()), float((mask.pixels & far).sum() / mask.pixels.sum())
