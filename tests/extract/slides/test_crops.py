from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.slides.crops import Crops, TileStore, niche_side_um, pieces, plan_crops, reading_order
from extract.slides.image import WHITE


class Grid:
    """An image in memory that counts how often each tile is read."""

    reader = "grid"

    def __init__(self, pixels: np.ndarray, tile_width: int, tile_height: int) -> None:
        self.pixels, self.tile_width, self.tile_height = pixels, tile_width, tile_height
        self.height, self.width = pixels.shape[:2]
        self.read: dict[tuple[int, int], int] = {}

    def read_tile(self, column: int, row: int) -> np.ndarray:
        self.read[column, row] = self.read.get((column, row), 0) + 1
        y, x = row * self.tile_height, column * self.tile_width
        return self.pixels[y : y + self.tile_height, x : x + self.tile_width]

    def overview(self) -> np.ndarray:
        return self.pixels

    def close(self) -> None:
        pass


def test_published_sides() -> None:
    assert [niche_side_um(n, 100, 55) for n in (1, 2, 3)] == [255, 455, 655]  # Visium
    assert niche_side_um(1, 200, 100) == 500  # legacy ST


def test_crops_are_centred_and_in_micrometres() -> None:
    crops = plan_crops("spot", np.array([[100.0, 200.0], [-3.0, 10.0]]), 55, 0.5)
    assert crops.side_px == 110
    assert crops.left.tolist() == [45, -58]
    assert crops.top.tolist() == [145, -45]


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 90), height=st.integers(1, 90), tile_width=st.integers(1, 100), tile_height=st.integers(1, 40),
    left=st.integers(-120, 120), top=st.integers(-120, 120), side=st.integers(1, 150), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_crop_is_the_padded_image_there(width, height, tile_width, tile_height, left, top, side, seed) -> None:  # type: ignore[no-untyped-def]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Grid(pixels, tile_width, tile_height)
    plan = pieces(image, left, top, side)
    out = np.zeros((side, side, 3), dtype=np.uint8)
    with ThreadPoolExecutor(2) as pool:
        tiles = TileStore(image, [Crops("spot", side, np.array([left]), np.array([top]))], pool)
        tiles.load([plan])
        tiles.cut(plan, out)
        tiles.release([plan])
    padded = np.full((height + 600, width + 600, 3), WHITE, dtype=np.uint8)
    padded[300 : 300 + height, 300 : 300 + width] = pixels
    np.testing.assert_array_equal(out, padded[300 + top : 300 + top + side, 300 + left : 300 + left + side])
    assert tiles.bytes == 0
    assert all(n == 1 for n in image.read.values())


def test_each_tile_is_decoded_once_and_few_are_kept() -> None:
    image = Grid(np.zeros((4000, 1000, 3), dtype=np.uint8), 50, 50)
    y, x = np.mgrid[100:3900:100, 100:900:100].reshape(2, -1)
    coords = np.stack([x, y], axis=1) + 0.0
    crops = plan_crops("6", coords, 255, 1.0)
    order = reading_order(coords, crops.side_px)
    plans = [pieces(image, int(crops.left[r]), int(crops.top[r]), crops.side_px) for r in order]
    most = 0
    with ThreadPoolExecutor(2) as pool:
        tiles = TileStore(image, [crops], pool)
        for i in range(0, len(plans), 16):
            tiles.load(plans[i : i + 16])
            most = max(most, tiles.bytes)
            tiles.release(plans[i : i + 16])
    assert set(image.read.values()) == {1}
    assert most < 0.25 * image.pixels.nbytes
    assert tiles.bytes == 0
