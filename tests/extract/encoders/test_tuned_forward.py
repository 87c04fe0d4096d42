"""The quick way through adapted blocks gives what timm's and peft's modules give."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from extract.encoders import tuned_forward as under_test
from extract.encoders.dropout import STEPS, keep_mask
from extract.encoders.encoder import Encoder, PooledEncoder, blocks_before
from extract.encoders.lora import LoraConfig, adapt, freeze_in_bf16, remove_adapters
from extract.encoders.tuned_forward import first_adapted, low_rank, tuned_forward
from tests.extract.encoders.test_encoder import DEPTH, LAYOUTS, crops, encoder_of

MORE: dict[str, tuple[Any, dict[str, Any]]] = {
    "timm's class token": ("timm", {"fc_norm": True, "global_pool": "token"}),
    "gated": ("cls", {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "qkv_bias": False, "proj_bias": False}),
    "normalised queries": ("cls", {"qk_norm": True}),  # not the usual attention: timm's own code runs
}
Outcome = tuple[Tensor, list[Tensor]]


def adapted(layout: str = "plain", layers: int = 3, dropout: float = 0.0) -> tuple[Encoder, list[nn.Parameter]]:
    """An encoder in training mode, with adapters as if trained."""
    torch.manual_seed(5)
    pooling, arguments = (LAYOUTS | MORE)[layout]
    backbone = VisionTransformer(32, 8, embed_dim=24, depth=DEPTH, num_heads=3, num_classes=0, **arguments)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.2)
    encoder = encoder_of(backbone, pooling)
    parameters = adapt(encoder, LoraConfig(layers=layers, dropout=dropout)).parameters
    for parameter in parameters:
        nn.init.normal_(parameter, std=0.2)
    encoder.module.train()
    return encoder, parameters


def by_modules(module: PooledEncoder, tokens: Tensor, block: int) -> Tensor:
    """What is under test, by timm's and peft's modules."""
    vit = module.backbone
    return module.pool(vit.norm(vit.blocks[block:](tokens)))


def outcome(
    forward: Callable[[PooledEncoder, Tensor, int], Tensor], encoder: Encoder, parameters: list[nn.Parameter], at: int
) -> Outcome:
    """Embeddings, and the gradients of a loss on them."""
    out = forward(encoder.module, blocks_before(encoder.module, crops(), at).detach(), at).float()
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    return out.detach(), list(torch.autograd.grad((out * target).sum(), parameters))


@pytest.mark.parametrize("layout", [*LAYOUTS, *MORE])
def test_it_is_the_forward_pass_of_the_modules(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain: list[bool] = []
    quick = under_test.tuned_block
    monkeypatch.setattr(
        under_test, "tuned_block", lambda b, x, first_only: (plain.append(first_only), quick(b, x, first_only))[1]
    )
    encoder, parameters = adapted(layout)
    assert first_adapted(encoder.module) == 1
    for at in (0, 1):  # block 0 is not adapted
        found, gradients = outcome(tuned_forward, encoder, parameters, at)
        expected, expected_gradients = outcome(by_modules, encoder, parameters, at)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for mine, theirs in zip(gradients, expected_gradients, strict=True):
            assert (mine - theirs).norm() < 1e-4 * theirs.norm()
    one_token = layout in ("plain", "uni", "norm before", "timm's class token", "gated")
    assert plain == ([] if layout == "normalised queries" else 2 * [False, False, one_token])


def test_bf16_is_that_of_autocast() -> None:
    encoder, parameters = adapted()
    found = {}
    with torch.autocast("cpu", torch.bfloat16):
        for name, forward in (("modules", by_modules), ("quick", tuned_forward)):
            found[name] = outcome(forward, encoder, parameters, 1)
    exact = outcome(by_modules, encoder, parameters, 1)
    for i in range(len(exact[1])):
        difference = [(found[name][1][i] - exact[1][i]).norm() for name in ("quick", "modules")]
        assert difference[0] < 2 * difference[1] + 1e-6, "no further from float32 than the modules"
        assert found["quick"][1][i].dtype == torch.float32
        assert difference[0] > 0


def test_weights_frozen_in_bf16_change_no_bit() -> None:
    """And the adapters come off as they did before, with the float32 weights back."""
    torch.manual_seed(5)
    encoder = encoder_of(VisionTransformer(32, 8, embed_dim=24, depth=DEPTH, num_heads=3, num_classes=0))
    before = {name: value.clone() for name, value in encoder.module.state_dict().items()}
    put_on = adapt(encoder, LoraConfig(layers=2))
    for parameter in put_on.parameters:
        nn.init.normal_(parameter, std=0.2)
    for forward in (by_modules, tuned_forward):
        with torch.autocast("cpu", torch.bfloat16):
            expected = outcome(forward, encoder, put_on.parameters, 1)
            freeze_in_bf16(put_on)
            found = outcome(forward, encoder, put_on.parameters, 1)
        assert encoder.module.backbone.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
        assert all(p.dtype == torch.float32 for p in put_on.parameters)
        assert torch.equal(found[0], expected[0])
        assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))
        if forward is by_modules:
            for parameter, values in put_on.originals:
                parameter.data = values
            put_on.originals.clear()
    remove_adapters(put_on)
    after = encoder.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_dropout_is_drawn_for_each_element_alone() -> None:
    torch.manual_seed(0)
    draws = keep_mask(torch.empty(4000, 5, 13), round(0.1 * STEPS)).flatten(1)  # 65 elements: no whole number of words
    assert set(draws.unique().tolist()) == {0, 1}
    share = draws.double().mean(0)
    assert (share - 0.9).abs().max() < 5 * (0.09 / 4000) ** 0.5
    correlation = torch.corrcoef(draws.T.double()).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / 4000**0.5
    for dropped, expected in ((0, 1), (STEPS - 1, 0)):
        assert (keep_mask(torch.empty(300), dropped) == expected).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_mean_and_its_gradient_has_the_same_mask(dtype: torch.dtype) -> None:
    encoder, _ = adapted(dropout=0.3)
    layer = encoder.module.backbone.blocks[1].attn.qkv
    factor = layer.lora_A["default"].weight
    with torch.no_grad():
        factor.copy_(torch.eye(4, 24))  # each column of the result is one input
    x = torch.full((50, 400, 24), 2.0, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        low = low_rank(layer, x)
    low.float().sum().backward()
    dropped = low.detach() == 0
    torch.testing.assert_close(
        low[~dropped].float(), torch.full_like(low[~dropped], 2 / 0.7).float(), rtol=5e-3, atol=0
    )
    assert abs(low.float().mean().item() - 2) < 0.03
    assert x.grad is not None
    assert torch.equal(x.grad[..., :4] == 0, dropped)
    assert (x.grad[..., 4:] == 0).all()
    encoder.module.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert (low_rank(layer, x) == 2).all()


@pytest.mark.parametrize("bf16", [False, True])
def test_dropout_is_that_of_the_seed_with_checkpoints_and_without_gradients_too(bf16: bool) -> None:
    encoder, parameters = adapted(dropout=0.2)
    runs = []
    for seed, checkpointed in ((1, False), (1, True), (2, False)):
        encoder.module.backbone.set_grad_checkpointing(checkpointed)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            torch.manual_seed(seed)
            runs.append(outcome(tuned_forward, encoder, parameters, 1))
            torch.manual_seed(seed)
            with torch.no_grad():
                tokens = blocks_before(encoder.module, crops(), 1)
                assert torch.equal(tuned_forward(encoder.module, tokens, 1).float(), runs[-1][0])
    (out, gradients), (again, gradients_again), (other, _) = runs
    assert torch.equal(out, again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_again, strict=True))
    assert not torch.equal(out, other)
