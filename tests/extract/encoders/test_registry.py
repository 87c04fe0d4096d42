"""The table of encoders, and what loading one gives."""

import subprocess
import sys
import time
from functools import cache
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from extract.encoders.encoder import Encoder, PooledEncoder
from extract.encoders.registry import (
    build,
    count_blocks_of,
    encoder_entries,
    encoder_names,
    find_entry,
    load_encoder,
)
from extract.encoders.weights import LAYOUTS, weights_digest
from hist_cache.errors import InputError


def crops(n: int, size: int) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


@cache
def built(name: str) -> nn.Module:
    """The model of a row, without values: the largest has a billion weights."""
    with torch.device("meta"):
        return build(encoder_entries()[name])


@pytest.fixture(scope="module")
def demo() -> Encoder:
    return load_encoder("demo")


def test_names_without_torch():
    code = (
        "import sys; from extract.encoders.registry import encoder_names; print(*encoder_names());"
        "assert not {'torch', 'timm', 'transformers', 'huggingface_hub'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == encoder_names()
    assert encoder_names()[0] == "uni"
    assert "conch" not in encoder_names()


@pytest.mark.parametrize("name", encoder_names())
def test_each_row_builds_the_documented_model(name):
    row = encoder_entries()[name]
    backbone = built(name)
    with torch.device("meta"):
        pooled = PooledEncoder(backbone, row.pooling).eval()
        embeddings = pooled(torch.empty(2, 3, row.input_size, row.input_size))
    assert embeddings.shape == (2, row.width)
    assert row.width == backbone.num_features * (2 if row.pooling == "cls+mean" else 1)
    assert row.layout in LAYOUTS
    assert row.interpolation in ("bilinear", "bicubic")
    assert len(row.mean) == len(row.std) == 3
    assert bool(row.repo and row.files and row.licence) == (row.weights == "pretrained")
    # LoRA finds its layers by these names; the weights' file must hold every tensor of the model.
    assert {"blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight"} <= backbone.state_dict().keys()
    assert {n for n, _ in backbone.named_buffers()} <= backbone.state_dict().keys()


# Millions of weights; at 4 bytes each they are the sizes of the published files (h-optimus-0: 4.54 GB).
@pytest.mark.parametrize(
    ("name", "millions", "prefix"),
    [
        ("uni", 303, 1),
        ("uni2-h", 681, 9),
        ("virchow2", 631, 5),
        ("h-optimus-0", 1135, 5),
        ("h-optimus-1", 1135, 5),
        ("h0-mini", 86, 5),
        ("prov-gigapath", 1135, 1),
        ("phikon-v2", 303, 1),
    ],
)
def test_size_and_prefix_tokens(name, millions, prefix):
    backbone = built(name)
    assert round(sum(p.numel() for p in backbone.parameters()) / 1e6) == millions
    assert backbone.num_prefix_tokens == prefix


def test_uni_transform():
    row = encoder_entries()["uni"]
    assert (row.input_size, row.interpolation) == (224, "bilinear")
    assert list(row.mean) == [0.485, 0.456, 0.406]
    assert list(row.std) == [0.229, 0.224, 0.225]
    assert row.arguments["init_values"] == 1e-5
    assert row.arguments["dynamic_img_size"] is True


def test_demo_needs_nothing_and_says_what_it_is(demo, caplog):
    caplog.set_level("INFO")
    again = load_encoder("demo")
    assert [(r.levelname, "not pretrained" in r.getMessage()) for r in caplog.records] == [("INFO", True)]
    assert (again.digest, again.source, again.pretrained) == (demo.digest, "random, seed 0", False)
    assert (demo.slug, demo.width, demo.input_size) == ("demo", 192, 224)
    with torch.inference_mode():
        first, second = demo.module(crops(3, 224)), again.module(crops(3, 224))
        assert torch.equal(first, demo.module.backbone(crops(3, 224)))  # the class token is timm's pooling
    assert first.shape == (3, 192)
    assert torch.equal(first, second)
    assert first.isfinite().all()
    assert (first[0] - first[1]).abs().max() > 1e-3, "different crops, different embeddings"
    assert not demo.module.training
    assert not any(p.requires_grad for p in demo.module.parameters())


def test_random_weights_leave_the_random_state_alone(caplog):
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    load_encoder("timm:test_vit", random_weights=True)
    assert torch.equal(torch.rand(4), expected)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "encoder timm:test_vit: random weights" in caplog.text


def test_a_weights_file_of_ones_own(demo, tmp_path):
    state = demo.module.backbone.state_dict()
    torch.save(state, tmp_path / "mine.pth")
    loaded = load_encoder("demo", weights=tmp_path / "mine.pth")
    assert (loaded.pretrained, loaded.source) == (True, str(tmp_path / "mine.pth"))
    assert loaded.digest == demo.digest
    with torch.inference_mode():
        assert torch.equal(loaded.module(crops(2, 224)), demo.module(crops(2, 224)))

    changed = {key: value.clone() for key, value in state.items()}
    changed["blocks.3.mlp.fc2.bias"][0] += 1e-3
    torch.save(changed, tmp_path / "changed.pth")
    assert load_encoder("demo", weights=tmp_path / "changed.pth").digest != demo.digest

    with pytest.raises(InputError, match=r"mine\.pth: not the weights of encoder timm:test_vit"):
        load_encoder("timm:test_vit", weights=tmp_path / "mine.pth")


def test_half_precision_files_become_float32(demo, tmp_path):
    state = {key: value.half() for key, value in demo.module.backbone.state_dict().items()}
    save_file(state, tmp_path / "half.safetensors")
    loaded = load_encoder("demo", weights=tmp_path / "half.safetensors")
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}


def test_pooling_skips_registers():
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(32, 8, embed_dim=12, depth=1, num_heads=2, reg_tokens=4, num_classes=0, global_pool="")
    with torch.inference_mode():
        tokens = vit.eval()(crops(2, 32))
        assert tokens.shape == (2, 1 + 4 + 16, 12)
        both = PooledEncoder(vit, "cls+mean").eval()(crops(2, 32))
        assert torch.equal(both, torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], 1))
        assert torch.equal(PooledEncoder(vit, "cls").eval()(crops(2, 32)), tokens[:, 0])


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet", "test_byobnet"])
def test_any_timm_model(name, tmp_path):
    """A published file has the classifier too; the embedding is what timm gives before it."""
    import timm

    torch.manual_seed(3)
    published: Any = timm.create_model(name).eval()
    save_file({key: value.contiguous() for key, value in published.state_dict().items()}, tmp_path / "w.safetensors")
    encoder = load_encoder(f"timm:{name}", weights=tmp_path / "w.safetensors")
    config = published.pretrained_cfg
    assert encoder.slug == f"timm-{name}"
    assert (encoder.mean, encoder.std) == (config["mean"], config["std"])
    assert (encoder.input_size, encoder.interpolation) == (config["input_size"][1], config["interpolation"])
    pixels = crops(2, encoder.input_size)
    with torch.inference_mode():
        expected = published.forward_head(published.forward_features(pixels), pre_logits=True)
        assert torch.equal(encoder.module(pixels), expected)
    assert encoder.width == expected.shape[1]


def test_timm_rows_name_their_repository():
    row = find_entry("timm:vit_small_patch16_224")
    assert row.repo.startswith("timm/vit_small_patch16_224.")
    assert list(row.mean) == [0.5, 0.5, 0.5]
    assert find_entry("timm:vit_small_patch16_224.dino").repo == "timm/vit_small_patch16_224.dino"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("UNI", "did you mean uni"),
        ("virchow", "did you mean virchow2"),
        ("zzz", "choose one of uni, uni2-h, .* or timm:NAME"),
        ("conch", "conch cannot be used: .*attentional pooler"),
        ("timm:vit_smal_patch16_224", "did you mean vit_small_patch16_224"),
        ("timm:vit_small_patch16_224.dinn", r"did you mean vit_small_patch16_224\.dino"),
        ("timm:hf-hub:a/b", "no such model"),
        ("timm:", "no such model"),
    ],
)
@pytest.mark.parametrize("random_weights", [True, False])
def test_names_that_cannot_be_loaded(name, message, random_weights):
    with pytest.raises(InputError, match=message) as caught:
        load_encoder(name, random_weights=random_weights)
    assert len(str(caught.value).splitlines()) == 1


def test_weights_or_random_weights(tmp_path):
    with pytest.raises(InputError, match="exclude each other"):
        load_encoder("uni", weights=tmp_path, random_weights=True)


@pytest.mark.parametrize(("name", "blocks"), [("demo", 4), ("timm:test_vit", 6), ("uni", 24), ("prov-gigapath", 40)])
def test_blocks_are_counted_without_weights(name, blocks):
    started = time.perf_counter()
    assert count_blocks_of(name) == blocks
    assert time.perf_counter() - started < 10, "a billion weights are not drawn"


def test_blocks_of_what_is_no_vit():
    with pytest.raises(InputError, match="encoder timm:test_resnet is a ResNet, not a timm VisionTransformer"):
        count_blocks_of("timm:test_resnet")
    with pytest.raises(InputError, match="did you mean uni"):
        count_blocks_of("UNI")


def test_blocks_are_counted_where_the_meta_device_does_not_do(monkeypatch):
    """Some models read values of their tensors while they are built."""

    def build_on_cpu_only(entry):
        torch.zeros(()).item()
        return build(entry)

    monkeypatch.setattr("extract.encoders.registry.build", build_on_cpu_only)
    assert count_blocks_of("timm:test_vit") == 6


@pytest.mark.slow
def test_uni_as_it_is_published(tmp_path, monkeypatch):
    """A ViT-L file of UNI's layout and size, in a folder named by the variable."""
    import timm

    with torch.device("meta"):
        published = timm.create_model(
            "vit_large_patch16_224",
            img_size=224,
            patch_size=16,
            init_values=1e-5,
            num_classes=0,
            dynamic_img_size=True,
        ).to_empty(device="cpu")
    with torch.no_grad():
        for i, parameter in enumerate(published.parameters()):
            parameter.fill_(i)  # quicker than random numbers, and no two tensors alike
    path = tmp_path / "pytorch_model.bin"
    try:
        torch.save(published.state_dict(), path)
        monkeypatch.setenv("HIST_WEIGHTS_UNI", str(tmp_path))
        encoder = load_encoder("uni")
    finally:
        path.unlink(missing_ok=True)  # 1.2 GB, and pytest keeps its folders
    assert encoder.source == f"{path} ($HIST_WEIGHTS_UNI)"
    assert (encoder.width, encoder.pretrained) == (1024, True)
    assert encoder.digest == weights_digest(published)
    assert len(encoder.module.backbone.blocks) == 24
