"""Resizing and normalising as Pillow and the usual formula do, and batches that are prepared in the background."""

import numpy as np
import PIL.Image
import pytest
import torch

from extract.slides.batches import Normalizer, in_background, resize, resize_float
from hist_cache.errors import HistError


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


def test_background_batches_pass_errors_on_and_end_early() -> None:
    def items(n: int, fail: bool):  # type: ignore[no-untyped-def]
        yield from ((i, i) for i in range(n))
        if fail:
            raise HistError("in the thread")

    assert [a for a, _ in in_background(items(5, False))] == [0, 1, 2, 3, 4]  # type: ignore[arg-type]
    with pytest.raises(HistError, match="in the thread"):
        list(in_background(items(2, True)))
    early = in_background(items(1000, False))
    assert next(early) == (0, 0)
    early.close()  # type: ignore[attr-defined]
