"""The two halves of an encoder are the whole, whatever its layout."""

from typing import Any

import pytest
import torch
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer

from extract.encoders.encoder import (
    Encoder,
    PooledEncoder,
    blocks_before,
    check_block,
    count_blocks,
    first_blocks_encoder,
    token_shape,
)
from extract.encoders.registry import load_encoder
from extract.encoders.tuned_forward import tuned_forward
from hist_cache.errors import InputError

DEPTH = 4
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("cls", {}),
    "uni": ("cls", {"init_values": 1e-5, "dynamic_img_size": True}),
    "registers": ("cls+mean", {"reg_tokens": 4, "no_embed_class": True, "global_pool": "", "dynamic_img_size": True}),
    "timm's own pooling": ("timm", {"global_pool": "avg", "fc_norm": True, "class_token": False}),
    "norm before": ("cls", {"pre_norm": True, "reg_tokens": 1}),
}


def encoder_of(backbone: Any, pooling: Any = "cls", size: int = 32) -> Encoder:
    module = PooledEncoder(backbone, pooling).eval().requires_grad_(False)
    return Encoder("tiny", module, 24, size, (0.5,) * 3, (0.5,) * 3, "bilinear", False, "test", "0" * 64)  # type: ignore[arg-type]


def tiny(layout: str = "plain") -> Encoder:
    pooling, arguments = LAYOUTS[layout]
    torch.manual_seed(5)
    backbone = VisionTransformer(32, 8, embed_dim=24, depth=DEPTH, num_heads=3, num_classes=0, **arguments)
    for parameter in backbone.parameters():  # fresh ones hide mistakes: unit scales, zero biases, tiny layer scales
        torch.nn.init.normal_(parameter, std=0.4)
    return encoder_of(backbone, pooling)


def crops(n: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("block", range(DEPTH + 1))
def test_the_halves_are_the_whole_to_the_last_bit(layout: str, block: int) -> None:
    module = tiny(layout).module
    with torch.inference_mode():
        tokens = blocks_before(module, crops(), block)
        assert torch.equal(tuned_forward(module, tokens, block), module(crops()))


def test_other_sizes_where_the_encoder_takes_them() -> None:
    module = tiny("uni").module
    with torch.inference_mode():
        assert blocks_before(module, crops(size=48), 2).shape == (3, 37, 24)
        assert torch.equal(tuned_forward(module, blocks_before(module, crops(size=48), 2), 2), module(crops(size=48)))


def test_tokens_are_what_enters_the_block() -> None:
    module = tiny("registers").module
    entered: list[torch.Tensor] = []
    module.backbone.blocks[3].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    with torch.inference_mode():
        module(crops())
        assert torch.equal(entered[0], blocks_before(module, crops(), 3))


def test_a_real_timm_model_and_its_shape() -> None:
    encoder = load_encoder("timm:test_vit", random_weights=True)
    assert token_shape(encoder) == (101, 64)
    first_blocks = first_blocks_encoder(encoder, 2)
    with torch.inference_mode():
        tokens = first_blocks.module(crops(2, 160))
        assert tokens.shape == (2, 101, 64)
        assert torch.equal(tuned_forward(encoder.module, tokens, 2), encoder.module(crops(2, 160)))
    assert not first_blocks.module.training
    assert first_blocks.module.backbone is encoder.module.backbone, "the weights are shared"
    assert (first_blocks.digest, first_blocks.lora) == (encoder.digest, None)


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointed in (False, True):
        module = tiny("uni").module
        module.backbone.set_grad_checkpointing(checkpointed)
        with torch.no_grad():
            tokens = blocks_before(module, crops(), 2)
        module.backbone.blocks[2:].requires_grad_(True)
        tuned_forward(module, tokens, 2).square().sum().backward()
        assert module.backbone.blocks[1].attn.qkv.weight.grad is None
        gradients.append([p.grad for p in module.backbone.blocks[2:].parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])  # the latter has `blocks` of its own kind
def test_other_models_are_refused(name: str) -> None:
    encoder = load_encoder(f"timm:{name}", random_weights=True)
    with pytest.raises(InputError, match=f"encoder timm:{name} is a .*, not a timm VisionTransformer"):
        count_blocks(encoder)


def test_a_model_that_only_looks_like_a_vit_is_refused() -> None:
    lookalike = Beit(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=0)
    assert hasattr(lookalike.blocks[0].attn, "qkv")
    with pytest.raises(InputError, match="is a Beit"):
        count_blocks(encoder_of(lookalike))


@pytest.mark.parametrize("block", [-1, 5])
def test_blocks_that_are_not_there(block: int) -> None:
    check_block(tiny(), 0)
    check_block(tiny(), DEPTH)
    with pytest.raises(InputError, match=f"block {block}: encoder tiny has 4 blocks; give one from 0 to 4"):
        check_block(tiny(), block)
