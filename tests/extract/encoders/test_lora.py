"""Which modules an adapter sits on, what it computes, what is trained."""

import re

import pytest
import torch

from extract.encoders.lora import LoraConfig, adapt, adapted_names, remove_adapters
from extract.encoders.registry import build, encoder_entries
from hist_cache.errors import HistError, InputError
from tests.extract.encoders.test_encoder import DEPTH, crops, encoder_of, tiny


def scrambled(adapted) -> None:  # type: ignore[no-untyped-def]
    """Adapters as if trained: they start as nothing."""
    for parameter in adapted.parameters:
        torch.nn.init.normal_(parameter, std=0.3)


@pytest.mark.parametrize(("layers", "parameters"), [(11, 270_336), (24, 589_824), (1, 24_576)])
def test_modules_and_size_on_uni(layers: int, parameters: int) -> None:
    """ViT-L: rank 4 on (1024 -> 3072) and (1024 -> 1024) is 4 (1024 + 3072) + 4 (1024 + 1024) numbers a block."""
    with torch.device("meta"):
        encoder = encoder_of(build(encoder_entries()["uni"]))
        adapted = adapt(encoder, LoraConfig(layers=layers))
    expected = {f"backbone.blocks.{i}.attn.{part}" for i in range(24 - layers, 24) for part in ("qkv", "proj")}
    assert set(adapted.modules) == set(adapted_names(encoder.module)) == expected
    assert len(adapted.modules) == 2 * layers
    assert sum(p.numel() for p in adapted.parameters) == parameters
    assert f"blocks {24 - layers}-23 of tiny: {2 * layers} modules, {parameters:,} trainable parameters" in (
        adapted.summary
    )


def test_the_convolution_is_left_alone() -> None:
    adapted = adapt(tiny(), LoraConfig(layers=DEPTH))
    assert not any("patch_embed" in name for name in adapted.modules)
    assert isinstance(adapted.encoder.module.backbone.patch_embed.proj, torch.nn.Conv2d)


def test_only_adapters_are_trained() -> None:
    encoder = tiny("uni")
    encoder.module.requires_grad_(True)
    adapted = adapt(encoder, LoraConfig(layers=2))
    for name, parameter in encoder.module.named_parameters():
        inside = re.fullmatch(r"backbone\.blocks\.[23]\.attn\.(qkv|proj)\.lora_[AB]\.default\.weight", name)
        assert parameter.requires_grad == bool(inside), name
    assert len(adapted.parameters) == 8


def test_fresh_adapters_change_nothing() -> None:
    encoder = tiny("uni")
    with torch.inference_mode():
        expected = encoder.module(crops())
        adapt(encoder, LoraConfig(layers=2))
        assert torch.equal(encoder.module(crops()), expected)
    assert not encoder.module.training


def test_the_arithmetic_is_that_of_the_formula() -> None:
    """W x + b + (alpha / rank) B A x, by weights W + (alpha / rank) B A put into another copy."""
    encoder, plain = tiny("registers"), tiny("registers")
    adapted = adapt(encoder, LoraConfig(layers=3, rank=2, alpha=5))
    scrambled(adapted)
    state = encoder.module.state_dict()
    with torch.inference_mode():
        for name in adapted.modules:
            a, b = (state[f"{name}.lora_{side}.default.weight"].double() for side in "AB")
            weight = plain.module.get_submodule(name).weight
            weight.copy_(weight.double() + 5 / 2 * b @ a)
        torch.testing.assert_close(encoder.module(crops()), plain.module(crops()), rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    encoder = tiny()
    scrambled(adapt(encoder, LoraConfig(layers=2, dropout=0.5)))
    with torch.inference_mode():
        assert torch.equal(encoder.module(crops()), encoder.module(crops()))
        encoder.module.train()
        assert not torch.equal(encoder.module(crops()), encoder.module(crops()))


def test_no_layers_no_adapter() -> None:
    encoder = tiny()
    encoder.module.requires_grad_(True)
    adapted = adapt(encoder, LoraConfig(layers=0))
    assert (adapted.model, adapted.modules, adapted.parameters) == (None, (), [])
    assert "no layer adapted; all 4 blocks of tiny frozen" in adapted.summary
    assert adapted_names(encoder.module) == ()


def test_removed_it_is_as_before_and_can_be_adapted_again() -> None:
    encoder = tiny()
    with torch.inference_mode():
        expected = encoder.module(crops())
    adapted = adapt(encoder, LoraConfig(layers=3))
    scrambled(adapted)
    with pytest.raises(HistError, match="carries an adapter already"):
        adapt(encoder, LoraConfig(layers=1))
    remove_adapters(adapted)
    with torch.inference_mode():
        assert torch.equal(encoder.module(crops()), expected)
    assert adapt(encoder, LoraConfig(layers=1)).modules == ("backbone.blocks.3.attn.qkv", "backbone.blocks.3.attn.proj")


def test_more_layers_than_blocks() -> None:
    with pytest.raises(InputError, match="LoRA on 5 layers: encoder tiny has 4 blocks; adapt 4 at most"):
        adapt(tiny(), LoraConfig(layers=5))


def test_blocks_without_the_layers() -> None:
    encoder = tiny()
    encoder.module.backbone.blocks[3].attn.qkv = torch.nn.Identity()
    with pytest.raises(InputError, match=r"no linear layer backbone\.blocks\.3\.attn\.qkv"):
        adapt(encoder, LoraConfig(layers=2))


@pytest.mark.parametrize("wrong", [{"layers": -1}, {"rank": 0}, {"alpha": 0}, {"dropout": 1.0}])
def test_settings_that_make_no_sense(wrong: dict) -> None:
    with pytest.raises(InputError, match="rank 1 or more"):
        LoraConfig(**wrong)
