"""Swin transformers as encoders: their pooled output, both kinds of published files, bf16, and no blocks to adapt."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from extract.encoders import registry
from extract.encoders.encoder import count_blocks
from extract.encoders.registry import find_entry, load_encoder
from hist_cache.errors import InputError

ARCHITECTURE = "swin_tiny_patch4_window7_224"
NAME = f"timm:{ARCHITECTURE}"
SMALL: dict[str, Any] = {"embed_dim": 12, "depths": (2, 2, 2, 1), "num_heads": (2, 2, 2, 2)}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder of this name is a small Swin: four stages, with windows that are shifted."""
    entry = replace(find_entry(NAME), arguments={"num_classes": 0, **SMALL})
    monkeypatch.setattr(registry, "find_entry", lambda name: entry)


def published() -> Any:
    """The small Swin with a classifier, as timm publishes it."""
    torch.manual_seed(3)
    return timm.create_model(ARCHITECTURE, num_classes=7, **SMALL).eval()


def named_as_by_its_authors(state: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """The same tensors as the authors' own files name them: stages end by a downsampling, and buffers are stored."""
    renamed = {re.sub(r"layers\.(\d)\.downsample", _stage_before, k): v for k, v in state.items()}
    renamed = {k.replace("head.fc.", "head."): v for k, v in renamed.items()}
    return renamed | {k: v for k, v in model.named_buffers() if v is not None}


def _stage_before(match: re.Match[str]) -> str:
    return f"layers.{int(match[1]) - 1}.downsample"


def crops(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def test_random_weights(small: None) -> None:
    encoder, again = (load_encoder(NAME, random_weights=True) for _ in range(2))
    assert (encoder.width, encoder.input_size, encoder.slug) == (96, 224, f"timm-{ARCHITECTURE}")
    assert encoder.digest == again.digest
    with torch.inference_mode():
        embeddings = encoder.module(crops())
        mean = encoder.module.backbone.forward_features(crops()).mean((1, 2))
    assert embeddings.shape == (2, 96)
    torch.testing.assert_close(embeddings, mean)
    assert (embeddings[0] - embeddings[1]).abs().max() > 1e-3


@pytest.mark.parametrize("authors", [False, True])
def test_published_files(authors: bool, small: None, tmp_path: Path) -> None:
    model = published()
    state = named_as_by_its_authors(model.state_dict(), model) if authors else model.state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "swin.safetensors")
    encoder = load_encoder(NAME, weights=tmp_path / "swin.safetensors")
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(crops()), pre_logits=True)
        assert torch.equal(encoder.module(crops()), expected)


def test_bf16(small: None) -> None:
    """As the pipeline computes it: all weights and buffers in bf16."""
    encoder = load_encoder(NAME, random_weights=True)
    with torch.inference_mode():
        whole = encoder.module(crops())
        halved = encoder.module.to(torch.bfloat16)(crops().bfloat16()).float()
    assert torch.nn.functional.cosine_similarity(whole, halved).min() > 0.999


def test_it_has_no_blocks_to_adapt(small: None) -> None:
    with pytest.raises(InputError, match="is a SwinTransformer, not a timm VisionTransformer"):
        count_blocks(load_encoder(NAME, random_weights=True))
