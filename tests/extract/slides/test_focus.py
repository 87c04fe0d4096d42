import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from scipy import ndimage

from extract.slides.focus import MAX_TILES, MIN_FOCUS, measure_focus, patch_focus
from extract.slides.image import Image
from extract.slides.readers import open_image
from extract.slides.tissue import TissueMask, find_tissue
from tests.conftest import SHARED, needs_shared

UM_PER_PX = 0.5


class Pixels:
    """A reader of an array, which counts decoded tiles."""

    name = "array"

    def __init__(self, pixels: np.ndarray, tile: int = 256) -> None:
        self.pixels, self.decoded = pixels, 0
        self.height, self.width = pixels.shape[:2]
        self.tile_width = self.tile_height = tile

    def read_tile(self, column: int, row: int) -> np.ndarray:
        self.decoded += 1
        y, x = row * self.tile_height, column * self.tile_width
        return self.pixels[y : y + self.tile_height, x : x + self.tile_width]

    def overview(self) -> np.ndarray:
        return self.pixels

    def close(self) -> None:
        pass


def cells(side: int = 1000, strength: float = 1.0) -> np.ndarray:
    """Round nuclei of 6 um with chromatin on eosin: (side, side, 3) float, 0.5 um a pixel."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    centers = rng.uniform(0, side, (side * side // 900, 2)).astype(int)
    seeds = np.ones((side, side), dtype=bool)
    seeds[centers[:, 0], centers[:, 1]] = False
    nuclei = ndimage.distance_transform_edt(seeds) < 6
    density = 0.15 + 0.3 * nuclei * (1 + 0.3 * ndimage.gaussian_filter(rng.standard_normal((side, side)), 2) / 0.14)
    return 240 * 10 ** -(strength * np.clip(density, 0, 2)[..., None] * [0.7, 1.0, 0.6])


def focus_of(pixels: np.ndarray, um_per_px: float = UM_PER_PX, sigma_um: float = 0.0, tile: int = 256) -> float:
    blurred = ndimage.gaussian_filter(pixels, (sigma_um / um_per_px, sigma_um / um_per_px, 0)) if sigma_um else pixels
    noise = np.random.default_rng(1).normal(0, 1.5, pixels.shape)
    scanned = np.clip(blurred + noise, 0, 255).astype(np.uint8)
    height, width = scanned.shape[:2]
    mask = TissueMask(np.ones((40, 40), dtype=bool), width, height, um_per_px)
    value = measure_focus(Image("S", Path("a"), Pixels(scanned, tile)), mask)
    assert value is not None
    return value


@pytest.mark.parametrize("strength", [0.4, 1.0, 2.0])
def test_sharp_slides_pass_and_blurred_ones_fail(strength: float) -> None:
    pixels = cells(strength=strength)
    values = [focus_of(pixels, sigma_um=sigma) for sigma in (0, 2, 4, 6)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 2 * MIN_FOCUS
    assert values[1] > MIN_FOCUS
    assert values[2] < MIN_FOCUS
    assert values[0] == pytest.approx(focus_of(cells()), rel=0.1)  # whatever the strength of the stain


@pytest.mark.parametrize("um_per_px", [0.12, 0.25, 1.0, 2.0])
def test_the_size_of_pixels_hardly_matters(um_per_px: float) -> None:
    for sigma_um in (0.0, 4.0):
        source = ndimage.gaussian_filter(cells(700), (2 * sigma_um, 2 * sigma_um, 0)) if sigma_um else cells(700)
        side = round(700 * UM_PER_PX / um_per_px)
        picture = PIL.Image.fromarray(np.clip(source, 0, 255).astype(np.uint8))
        resized = np.asarray(picture.resize((side, side), PIL.Image.Resampling.BICUBIC)).astype(float)
        assert (focus_of(resized, um_per_px) > MIN_FOCUS) == (sigma_um == 0)


def test_few_tiles_are_decoded() -> None:
    for tile, um_per_px in ((256, 0.5), (64, 0.5), (32, 0.5), (1000, 0.5), (256, 2.0)):
        reader = Pixels(np.clip(cells(), 0, 255).astype(np.uint8), tile)
        mask = TissueMask(np.ones((40, 40), dtype=bool), 1000, 1000, um_per_px)
        assert measure_focus(Image("S", Path("a"), reader), mask) is not None
        assert reader.decoded <= max(MAX_TILES, (160 / um_per_px / tile + 2) ** 2)


def test_patches_lie_on_tissue() -> None:
    pixels = cells()
    pixels[:, 500:] = ndimage.gaussian_filter(pixels[:, 500:], (20, 20, 0))
    sharp = np.zeros((40, 40), dtype=bool)
    sharp[:, :20] = True
    image = Image("S", Path("a"), Pixels(np.clip(pixels, 0, 255).astype(np.uint8), 64))
    inside, outside = (measure_focus(image, TissueMask(mask, 1000, 1000, UM_PER_PX)) for mask in (sharp, ~sharp))
    assert inside is not None
    assert outside is not None
    assert inside > 2 * MIN_FOCUS > 4 * outside


def test_no_tissue_and_no_structure_give_nothing() -> None:
    empty = Image("S", Path("a"), Pixels(np.full((300, 300, 3), 230, dtype=np.uint8)))
    assert measure_focus(empty, TissueMask(np.zeros((3, 3), dtype=bool), 300, 300, 0.5)) is None
    assert measure_focus(empty, TissueMask(np.ones((3, 3), dtype=bool), 300, 300, 0.5)) is None
    assert patch_focus(np.zeros((1, 1, 3), dtype=np.uint8), 0.5) is None


@needs_shared
@pytest.mark.parametrize("slide", ["SPA138", "SPA141"])
def test_real_slides_are_sharp_until_they_are_blurred(slide: str) -> None:
    um_per_px = 0.686
    image = open_image(slide, SHARED / "hest" / "wsis" / f"{slide}.tif")
    mask = find_tissue(image.overview(), (image.width, image.height), um_per_px)
    began = time.process_time()
    value = measure_focus(image, mask)
    assert time.process_time() - began < 2
    assert value is not None
    assert value > 2.4 * MIN_FOCUS
    row, column = (int(c) for c in ndimage.center_of_mass(mask.pixels))
    x, y = column * image.width // mask.pixels.shape[1] // 256, row * image.height // mask.pixels.shape[0] // 256
    tiles = [np.concatenate([image.read_tile(x + i, y + j) for i in range(3)], axis=1) for j in range(3)]
    pixels = np.concatenate(tiles).astype(float)
    assert focus_of(pixels, um_per_px) > 2 * MIN_FOCUS
    assert focus_of(pixels, um_per_px, sigma_um=4.0) < MIN_FOCUS
