from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.slides.batches import Normalizer, resize, resize_float
from extract.slides.crops import Crops, TileStore, niche_side_um, pieces, plan_crops, sweep_order
from extract.slides.readers import WHITE


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
    assert [niche_side_um(m, 100, 55) for m in (1, 2, 3)] == [255, 455, 655]  # Visium
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


def test_a_sweep_decodes_each_tile_once_and_keeps_few() -> None:
    image = Grid(np.zeros((4000, 1000, 3), dtype=np.uint8), 50, 50)
    y, x = np.mgrid[100:3900:100, 100:900:100].reshape(2, -1)
    coords = np.stack([x, y], axis=1) + 0.0
    crops = plan_crops("6", coords, 255, 1.0)
    order = sweep_order(coords, crops.side_px)
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


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [60, 146, 224, 500, 729])
def test_resize_agrees_with_pillow(interpolation: str, side: int) -> None:
    rng = np.random.default_rng(side)
    smooth = np.kron(rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8), np.ones((1, 24, 24, 1), dtype=np.uint8))
    crops = np.concatenate([smooth, rng.integers(0, 256, smooth.shape, dtype=np.uint8)])[:, :side, :side]
    kernel = PIL.Image.Resampling[interpolation.upper()]
    expected = np.stack([np.asarray(PIL.Image.fromarray(c).resize((224, 224), kernel)) for c in crops])
    ours = resize(torch.from_numpy(np.ascontiguousarray(crops)), 224, interpolation).permute(0, 2, 3, 1).numpy()  # type: ignore[arg-type]
    difference = np.abs(ours.astype(int) - expected)
    assert difference.max() <= 2  # Pillow rounds between its two passes
    assert (difference > 0).mean() < 0.02


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_float_kernel_of_other_devices_agrees(interpolation: str) -> None:
    crops = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 300, 300, 3), dtype=np.uint8))
    ours = resize(crops, 224, interpolation)  # type: ignore[arg-type]
    theirs = resize_float(crops.permute(0, 3, 1, 2), 224, interpolation)  # type: ignore[arg-type]
    assert (ours.int() - theirs.int()).abs().max() <= 2


def test_normalizing_is_the_usual_formula() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normalize = Normalizer(mean, std, 32, torch.device("cpu"))
    for n in (3, 1, 4):
        images = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        out = torch.empty((n, 3, 32, 32)).to(memory_format=torch.channels_last)
        normalize(images, out)
        m, s = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std))
        torch.testing.assert_close(out.double(), (images.double() / 255 - m) / s, atol=1e-5, rtol=0)
