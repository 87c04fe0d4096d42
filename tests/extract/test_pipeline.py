from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from extract.encoders.encoder import Encoder
from extract.encoders.registry import load_encoder
from extract.pipeline import Pipeline
from extract.slides.crops import niche_side_um, plan_crops
from extract.slides.image import WHITE
from extract.slides.readers import open_image
from hist_cache.errors import HistError
from hist_cache.slides import find_slide
from hist_cache.spots import read_spots
from tests.conftest import SHARED, TINY_ENCODER, needs_shared, write_slide

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(TINY_ENCODER, random_weights=True)


def naive(encoder: Encoder, pixels: np.ndarray, coords: np.ndarray, side: int) -> np.ndarray:
    """Crop by crop through Pillow, one at a time, in float32."""
    padded = np.pad(pixels, ((1000, 1000), (1000, 1000), (0, 0)), constant_values=WHITE)
    kernel = PIL.Image.Resampling[encoder.interpolation.upper()]
    out = []
    for x, y in coords:
        left, top = round(x - side / 2) + 1000, round(y - side / 2) + 1000
        crop = PIL.Image.fromarray(padded[top : top + side, left : left + side])
        small = np.asarray(crop.resize((encoder.input_size,) * 2, kernel)) / 255
        image = torch.from_numpy((small - encoder.mean) / encoder.std).permute(2, 0, 1).float()
        with torch.no_grad():
            out.append(encoder.module(image[None])[0].numpy())
    return np.array(out)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def check_against_naive(encoder: Encoder, root: Path, slide: str, most: int) -> None:
    files = find_slide(root, slide)
    coords = read_spots(files).coords[:most]
    image = open_image(slide, files.image)
    sides = {"spot": files.spot_um, "6": niche_side_um(1, files.pitch_um, files.spot_um)}
    crops = [plan_crops(name, coords, side, files.um_per_px) for name, side in sides.items()]
    pipeline = Pipeline(encoder, CPU, torch.float32, 7, 2)  # batches that mix sizes and end unfilled
    heard: list[int] = []
    result = pipeline.embed(image, coords, crops, heard.append)
    assert sum(heard) == 2 * len(coords) == pipeline.clock.crops
    rows = [
        [image.read_tile(c, r) for c in range(-(-image.width // image.tile_width))]
        for r in range(-(-image.height // image.tile_height))
    ]
    pixels = np.concatenate([np.concatenate(row, 1) for row in rows])
    for c in crops:
        assert result[c.name].dtype == np.float16
        assert cosine(result[c.name], naive(encoder, pixels, coords, c.side_px)).min() > 0.9999


def test_embeddings_equal_those_made_crop_by_crop(encoder: Encoder, tmp_path: Path) -> None:
    write_slide(tmp_path, "TINY1")
    check_against_naive(encoder, tmp_path, "TINY1", 30)


@needs_shared
def test_embeddings_of_a_real_slide(encoder: Encoder) -> None:
    check_against_naive(encoder, SHARED / "hest", "SPA138", 12)


class Narrow(nn.Module):
    """Runs out of memory on more than `most` crops, as a small GPU does."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("no memory")
        return x.mean((2, 3))


def fake(module: nn.Module) -> Encoder:
    return Encoder("fake", module, 3, 32, (0.5,) * 3, (0.5,) * 3, "bilinear", False, "test", "0" * 64)  # type: ignore[arg-type]


def embed_tiny(pipeline: Pipeline, root: Path) -> dict[str, np.ndarray]:
    files = find_slide(root, "TINY1")
    coords = read_spots(files).coords
    return pipeline.embed(open_image("TINY1", files.image), coords, [plan_crops("spot", coords, 55, 2.0)])


def test_out_of_memory_halves_the_batch_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_slide(tmp_path, "TINY1")
    whole = embed_tiny(Pipeline(fake(Narrow(1000)), CPU, torch.float32, 16, 2), tmp_path)
    pipeline = Pipeline(fake(Narrow(5)), CPU, torch.float32, 16, 2)
    np.testing.assert_array_equal(embed_tiny(pipeline, tmp_path)["spot"], whole["spot"])
    assert pipeline.batch_size == 4
    assert caplog.records[-1].levelname == "WARNING"
    assert "going on with batches of 4" in caplog.text
    with pytest.raises(HistError, match="batch of one crop"):
        embed_tiny(Pipeline(fake(Narrow(0)), CPU, torch.float32, 4, 2), tmp_path)


def test_non_finite_embeddings_are_refused(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 3), float("nan"))

    write_slide(tmp_path, "TINY1")
    with pytest.raises(HistError, match="non-finite"):
        embed_tiny(Pipeline(fake(Broken()), CPU, torch.float32, 4, 2), tmp_path)


def test_large_crops_make_smaller_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_slide(tmp_path, "TINY1")
    whole = embed_tiny(Pipeline(fake(Narrow(1000)), CPU, torch.float32, 16, 2), tmp_path)
    monkeypatch.setattr("extract.pipeline.MAX_BATCH_BYTES", 3 * 3 * 28**2)
    pipeline = Pipeline(fake(Narrow(4)), CPU, torch.float32, 16, 2)  # 28 px spots: four go beyond the bytes of three
    np.testing.assert_array_equal(embed_tiny(pipeline, tmp_path)["spot"], whole["spot"])
    assert pipeline.batch_size == 16
