"""Extraction on a GPU gives what it gives on a CPU: raw pixels, pinned memory, resizing there, bf16."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from extract.encoders.encoder import Encoder, PooledEncoder
from extract.encoders.registry import load_encoder
from extract.pipeline import Pipeline, Precision, crops_per_second, has_fast_bf16, start_pipeline
from extract.slides.batches import CpuBatch, CropTransform, GpuBatch, to_device
from extract.slides.crops import niche_side_um, plan_crops
from extract.slides.readers import open_image
from hist_cache.slides import find_slide
from hist_cache.spots import read_spots
from tests.conftest import TINY_ENCODER, write_slide
from tests.gpu import CUDA, on_cuda

CPU = torch.device("cpu")


def embedded(root: Path, device: torch.device, precision: Precision, encoder: Encoder | None = None) -> np.ndarray:
    """Embeddings of the spots and niches of a tiny slide, in batches of 8."""
    encoder = encoder or load_encoder(TINY_ENCODER, random_weights=True)
    files = find_slide(root, "TINY1")
    coords = read_spots(files).coords
    sides = {"spot": 55.0, "6": niche_side_um(1, 100.0, 55.0)}
    crops = [plan_crops(name, coords, side, files.um_per_px) for name, side in sides.items()]
    with closing(start_pipeline(encoder, precision, device)) as pipeline:
        pipeline.batch_size = min(pipeline.batch_size, 8)
        result = pipeline.embed(open_image("TINY1", files.image), coords, crops)
        assert pipeline.clock.crops == 2 * len(coords)
    return np.concatenate(list(result.values())).astype(np.float32)


def least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


@on_cuda
def test_embeddings_are_those_of_the_cpu(tmp_path: Path) -> None:
    write_slide(tmp_path, "TINY1")
    expected = embedded(tmp_path, CPU, "fp32")
    first = embedded(tmp_path, CUDA, "fp32")
    assert least_cosine(first, expected) > 0.9999
    np.testing.assert_array_equal(embedded(tmp_path, CUDA, "fp32"), first)
    if has_fast_bf16(CUDA):
        assert least_cosine(embedded(tmp_path, CUDA, "bf16"), expected) > 0.99


@on_cuda
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [24, 64, 160, 2000])
def test_resized_crops_are_those_of_the_cpu(interpolation: str, side: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, side, side, 3), dtype=np.uint8)
    encoder = replace(load_encoder(TINY_ENCODER, random_weights=True), interpolation=interpolation)  # type: ignore[arg-type]
    results = []
    for kind, device in ((CpuBatch, CPU), (GpuBatch, CUDA)):
        batch = kind(CropTransform(encoder, device, torch.float32), 5)
        for start, end in ((0, 2), (2, 5)):
            cut = pixels[start:end]
            batch.put(start, cut.shape, lambda out, cut=cut: np.copyto(out, cut))
        results.append(batch.take())
    level = 1 / 255 / min(encoder.std)
    assert results[1].device.type == CUDA.type
    assert (results[1].cpu() - results[0]).abs().max() < 2.01 * level, "the GPU rounds after each of two passes"


@on_cuda
def test_pinned_memory_is_not_written_again_before_it_was_copied() -> None:
    """Copies wait for a busy GPU; meanwhile the CPU has long gone on."""
    a = torch.randn(4096, 4096, device=CUDA)
    copies = []
    for i in range(200):
        a = (a @ a).tanh()
        copies.append(to_device(torch.full((1000,), i), CUDA))
    for i, values in enumerate(copies):
        assert (values == i).all(), i


class Hungry(PooledEncoder):
    """Needs more memory than any GPU has for more than three crops."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), "cls")

    def forward(self, crops: Tensor) -> Tensor:
        if len(crops) > 3:
            torch.empty(2**44, device=crops.device)
        return crops.float().mean((2, 3)).repeat(1, 22)[:, :64]


@on_cuda
def test_out_of_memory_halves_the_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_slide(tmp_path, "TINY1")
    hungry = replace(load_encoder(TINY_ENCODER, random_weights=True), module=Hungry())
    assert embedded(tmp_path, CUDA, "fp32", hungry).shape == (60, 64)
    assert "going on with batches of 2" in caplog.text


@on_cuda
def test_a_pipeline_by_default() -> None:
    encoder = load_encoder(TINY_ENCODER, random_weights=True)
    with closing(start_pipeline(encoder)) as pipeline:
        assert isinstance(pipeline, Pipeline)
        assert pipeline.device.type == "cuda"
        assert pipeline.precision == ("bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp32")
        assert crops_per_second(pipeline) > 0
