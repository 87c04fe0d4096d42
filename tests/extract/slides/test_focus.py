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
from hist_cache.demo.tissue import grow_tissue
from tests.conftest import SHARED, needs_shared

UM_PER_PX = 0.7  # of the generated section; real ones have 0.686


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


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """The green of a generated section without its border: (500, 500) float, 0.7 um a pixel."""
    return grow_tissue(np.random.default_rng(0), 1200, 1200, UM_PER_PX).pixels[350:850, 350:850, 1].astype(float)


def stained(pixels: np.ndarray, strength: float) -> np.ndarray:
    return 255 * (pixels / 255) ** strength


def blur(pixels: np.ndarray, sigma_um: float) -> np.ndarray:
    return ndimage.gaussian_filter(pixels, sigma_um / UM_PER_PX)


def rgb(green: np.ndarray) -> np.ndarray:
    return np.repeat(np.clip(green, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def focus_of(pixels: np.ndarray, um_per_px: float = UM_PER_PX) -> float:
    scanned = rgb(pixels + np.random.default_rng(1).normal(0, 1.5, pixels.shape))
    height, width = scanned.shape[:2]
    mask = TissueMask(np.ones((3, 3), dtype=bool), width, height, um_per_px)
    return measure_focus(Image("S", Path("a"), Pixels(scanned)), mask)


def test_sharp_slides_pass_and_blurred_ones_fail(tissue: np.ndarray) -> None:
    values = [focus_of(blur(tissue, sigma)) for sigma in (0, 2, 4, 6)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 2 * MIN_FOCUS
    assert values[1] > MIN_FOCUS
    assert values[2] < MIN_FOCUS
    assert focus_of(blur(tissue, 15)) < MIN_FOCUS


@pytest.mark.parametrize("strength", [0.4, 2.0])
def test_the_strength_of_the_stain_hardly_matters(tissue: np.ndarray, strength: float) -> None:
    for pixels in (tissue, blur(tissue, 4)):
        assert focus_of(stained(pixels, strength)) == pytest.approx(focus_of(pixels), rel=0.2)
    assert focus_of(stained(blur(tissue, 4), strength)) < MIN_FOCUS


@pytest.mark.parametrize("um_per_px", [0.12, 0.25, 1.0, 2.0])
def test_the_size_of_pixels_hardly_matters(tissue: np.ndarray, um_per_px: float) -> None:
    for sigma_um in (0.0, 4.0):
        source = blur(tissue, sigma_um)[:300, : 300 if um_per_px < 0.2 else 500]
        shape = [round(n * UM_PER_PX / um_per_px) for n in source.shape[1::-1]]
        picture = PIL.Image.fromarray(np.clip(source, 0, 255).astype(np.uint8))
        resized = np.asarray(picture.resize(shape, PIL.Image.Resampling.BICUBIC)).astype(float)
        assert (focus_of(resized, um_per_px) > 2 * MIN_FOCUS) == (sigma_um == 0)
        assert (focus_of(resized, um_per_px) > MIN_FOCUS) == (sigma_um == 0)


@pytest.mark.parametrize(("tile", "um_per_px"), [(256, 0.7), (64, 0.7), (32, 0.7), (500, 0.7), (256, 2.0)])
def test_few_tiles_are_decoded(tissue: np.ndarray, tile: int, um_per_px: float) -> None:
    reader = Pixels(rgb(tissue), tile)
    assert measure_focus(Image("S", Path("a"), reader), TissueMask(np.ones((40, 40), dtype=bool), 500, 500, um_per_px))
    assert reader.decoded <= max(MAX_TILES, (160 / um_per_px / tile + 2) ** 2)


def test_patches_lie_on_tissue(tissue: np.ndarray) -> None:
    pixels = np.concatenate([tissue[:, :250], blur(tissue[:, 250:], 6)], axis=1)
    sharp = np.zeros((60, 60), dtype=bool)
    sharp[:, :30] = True
    image = Image("S", Path("a"), Pixels(rgb(pixels), 64))
    inside, outside = (measure_focus(image, TissueMask(mask, 500, 500, UM_PER_PX)) for mask in (sharp, ~sharp))
    assert inside > 2 * MIN_FOCUS
    assert outside < MIN_FOCUS


def test_no_tissue_and_no_structure_are_not_sharp() -> None:
    empty = Image("S", Path("a"), Pixels(np.full((300, 300, 3), 230, dtype=np.uint8)))
    assert measure_focus(empty, TissueMask(np.zeros((3, 3), dtype=bool), 300, 300, 0.5)) == 0
    assert measure_focus(empty, TissueMask(np.ones((3, 3), dtype=bool), 300, 300, 0.5)) == 0
    assert patch_focus(np.zeros((1, 1, 3), dtype=np.uint8), 0.5) is None


@needs_shared
@pytest.mark.parametrize("slide", ["SPA138", "SPA141"])
def test_real_slides_are_sharp_until_they_are_blurred(slide: str) -> None:
    image = open_image(slide, SHARED / "hest" / "wsis" / f"{slide}.tif")
    mask = find_tissue(image.overview(), (image.width, image.height), UM_PER_PX)
    began = time.process_time()
    value = measure_focus(image, mask)
    assert time.process_time() - began < 2
    assert value > 2.4 * MIN_FOCUS
    row, column = (int(c) for c in ndimage.center_of_mass(mask.pixels))
    x, y = column * image.width // mask.pixels.shape[1] // 256, row * image.height // mask.pixels.shape[0] // 256
    tiles = [np.concatenate([image.read_tile(x + i, y + j) for i in range(3)], axis=1) for j in range(3)]
    pixels = np.concatenate(tiles)[..., 1].astype(float)
    assert focus_of(pixels) > 2 * MIN_FOCUS
    assert focus_of(blur(pixels, 4)) < MIN_FOCUS
