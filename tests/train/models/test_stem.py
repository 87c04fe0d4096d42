"""Stem: its network written again in float64, and its samples."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hist_cache.errors import InputError
from tests.train.fit.test_loop import make_data
from train.data import Images, SpotData
from train.fit.average import WeightAverage
from train.fit.batches import read_batch
from train.fit.config import FitConfig
from train.fit.loop import predict, train_epoch
from train.fit.step import make_optimizer
from train.models import stem
from train.models.configs import StemConfig
from train.models.diffusion import SpotNoise, noised
from train.models.ensemble import EnsembleModel
from train.models.registry import get_model
from train.models.stem import StemModel

GENES, WIDTH = 4, 32
DATA = make_data(genes=GENES)
CPU = torch.device("cpu")


def make_stem(data: SpotData = DATA, seed: int = 0, **more: object) -> StemModel:
    torch.manual_seed(seed)
    sizes = {"width": WIDTH, "depth": 1, "heads": 4, "samples": 3, "sampling_steps": 4}
    return StemModel(StemConfig(data.spot.shape[1], len(data.panel), **sizes | more))  # type: ignore[arg-type]


def any_weights(model: StemModel) -> StemModel:
    """The model with weights that are nowhere zero, so that nothing is left out."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.5 if p.dim() == 1 else p.shape[-1] ** -0.5))
    return model.eval()


def images_of(rows: Tensor, data: SpotData = DATA) -> Images:
    return Images(data.spot[rows].float(), data.niche[rows].float(), rows)


@pytest.fixture(scope="module")
def trained() -> StemModel:
    """A model that knows 64 spots."""
    model = make_stem(samples=10, sampling_steps=20)
    model.prepare(DATA, torch.arange(64), torch.arange(64), 7)
    optimizer = make_optimizer(model, DATA.inputs, FitConfig(lr=2e-2, weight_decay=0.0))
    average = WeightAverage(list(model.parameters()), 0.95)
    order = torch.Generator().manual_seed(0)
    for _ in range(200):
        train_epoch(model, optimizer, DATA, torch.arange(64).repeat(4), 256, order, average=average)
    average.apply()
    return model.eval()


def test_its_parameters_are_those_of_the_paper() -> None:
    count = sum(p.numel() for p in StemModel(StemConfig(1024, 200)).parameters())
    assert count == pytest.approx(34.1e6, rel=2e-3)
    assert (StemConfig(8, 8).width, StemConfig(8, 8).depth, StemConfig(8, 8).heads) == (384, 12, 6)


def test_the_first_prediction_of_noise_is_0() -> None:
    model = make_stem(depth=2)
    state = model.network.embed_times(torch.arange(5)) + model.network.embed_spots(DATA.spot[:5].float())
    noise = model.network(torch.randn(5, 2, GENES), state)
    assert (noise.shape, noise.dtype) == ((5, 2, GENES), torch.float32)
    assert not noise.any()
    tokens = torch.randn(5, 2, GENES, WIDTH)
    assert torch.equal(model.network.blocks[0](tokens, state), tokens), "a block begins as the identity"


def norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()


def network_again(model: StemModel, x: Tensor, time: int, spot: Tensor) -> Tensor:
    """The noise `(G,)` in one profile `(G,)` of one spot, float64, a gene and a head at a time."""
    w = {name: p.detach().double() for name, p in model.network.named_parameters()}

    def linear(name: str, v: Tensor) -> Tensor:
        return w[f"{name}.weight"] @ v + w[f"{name}.bias"]

    def two(name: str, v: Tensor) -> Tensor:
        return linear(f"{name}.2", F.silu(linear(f"{name}.0", v)))

    angles = torch.tensor([time * 10_000 ** (-i / 128) for i in range(128)], dtype=torch.float64)
    state = F.silu(two("time", torch.cat([angles.cos(), angles.sin()])) + two("spot", spot.double()))
    tokens = [two("value", value[None].double()) + w["gene"][j] for j, value in enumerate(x)]
    for b in range(model.config.depth):
        shift, scale, gate, shift2, scale2, gate2 = linear(f"blocks.{b}.modulation", state).chunk(6)
        parts = [linear(f"blocks.{b}.to_attention", norm(t) * (1 + scale) + shift) for t in tokens]
        queries, keys, values = (torch.stack(p) for p in zip(*(part.chunk(3) for part in parts), strict=True))
        mixed = []
        for head in torch.arange(WIDTH).chunk(model.config.heads):
            scores = queries[:, head] @ keys[:, head].T / math.sqrt(len(head))
            mixed.append(scores.softmax(1) @ values[:, head])
        mixed_tokens = torch.cat(mixed, dim=1)
        tokens = [t + gate * linear(f"blocks.{b}.from_attention", m) for t, m in zip(tokens, mixed_tokens, strict=True)]
        for j, t in enumerate(tokens):
            hidden = F.gelu(linear(f"blocks.{b}.mlp.0", norm(t) * (1 + scale2) + shift2), approximate="tanh")
            tokens[j] = t + gate2 * linear(f"blocks.{b}.mlp.2", hidden)
    shift, scale = linear("modulation", state).chunk(2)
    return torch.cat([linear("to_noise", norm(t) * (1 + scale) + shift) for t in tokens])


def test_the_network_is_its_formula() -> None:
    model = any_weights(make_stem(depth=2))
    generator = torch.Generator().manual_seed(2)
    x, times, spots = torch.randn(2, 3, GENES, generator=generator) * 3, torch.tensor([0, 700]), DATA.spot[:2].float()
    state = model.network.embed_times(times) + model.network.embed_spots(spots)
    found = model.network(x, state)
    for i in range(2):
        for k in range(3):
            again = network_again(model, x[i, k], int(times[i]), spots[i])
            torch.testing.assert_close(found[i, k].double(), again, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_error_of_the_noise() -> None:
    model, batch = any_weights(make_stem()), read_batch(DATA, torch.arange(20))
    torch.manual_seed(3)
    loss, log = model.loss(batch)
    torch.manual_seed(3)
    times, noise = torch.randint(1000, (20,)), torch.randn(20, GENES)
    errors = []
    for i in range(20):
        x = noised(batch.target[i].double(), noise[i].double(), model.schedule.signal[int(times[i])])
        errors.append(network_again(model, x, int(times[i]), batch.spot[i]) - noise[i])
    assert loss.item() == pytest.approx(torch.stack(errors).square().mean().item(), rel=1e-4)
    assert set(log) == {"loss", "objective"}
    model.pearson = 0.5
    torch.manual_seed(3)
    assert model.loss(batch)[1]["objective"] == log["objective"]


def test_in_bf16_the_noise_is_still_float32() -> None:
    model, batch = any_weights(make_stem()), read_batch(DATA, torch.arange(64))
    torch.manual_seed(3)
    plain, _ = model.loss(batch)
    model.precision = "bf16"
    torch.manual_seed(3)
    with model.autocast(CPU):
        loss, _ = model.loss(batch)
        assert model.network(torch.randn(2, 1, GENES), torch.zeros(2, WIDTH)).dtype == torch.float32
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.item(), rel=0.03)
    assert predict(model, DATA, torch.arange(4)).dtype == torch.float32


def test_it_overfits_64_spots(trained: StemModel) -> None:
    rows = torch.arange(64)
    target = DATA.expression[rows]
    of_mean = (target - target.mean(0)).square().mean().item()
    own, quick = ((predict(trained, DATA, rows, quickly=q) - target).square().mean().item() for q in (False, True))
    assert own < 0.25 * of_mean
    assert own < quick < of_mean, "one sample has its own chance in it"


def test_50_steps_of_ddim_predict_what_1000_of_ddpm_do(trained: StemModel) -> None:
    rows = torch.arange(8)
    few, many = (
        trained.mean_sample(images_of(rows), trained.schedule.reverse_steps(count), 12, is_random)
        for count, is_random in ((50, False), (1000, True))
    )
    assert torch.corrcoef(torch.stack([few.flatten(), many.flatten()]))[0, 1] > 0.85
    errors = [(predicted - DATA.expression[rows]).square().mean().item() for predicted in (few, many)]
    assert max(errors) < 0.5 * DATA.expression.var().item()


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_prediction_does_not_depend_on_other_spots(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = any_weights(make_stem(sampler=sampler))
    rows = torch.arange(12)
    whole = predict(model, DATA, rows)
    same = {"rtol": 1e-3, "atol": 1e-3}  # the start is magnified 150 times, and its rounding with it
    mixed = torch.tensor([10, 3, 11])
    torch.testing.assert_close(predict(model, DATA, mixed), whole[mixed], **same)
    for tokens in (1, 2 * GENES, 7 * GENES):  # a sample, two samples, or two spots and a part of a third one
        monkeypatch.setattr(stem, "TOKENS_AT_ONCE", tokens)
        torch.testing.assert_close(predict(model, DATA, rows), whole, **same)
    niche = replace(DATA, niche=DATA.niche * torch.nan)
    torch.testing.assert_close(predict(model, niche, rows), whole, **same)


def test_equal_seeds_give_equal_predictions() -> None:
    def predicted(seed: int) -> Tensor:
        model = any_weights(make_stem())
        model.prepare(DATA, torch.arange(9), torch.arange(9), seed)
        torch.manual_seed(seed + 1)  # torch's own random state has no part in it
        return predict(model, DATA, torch.arange(9))

    assert torch.equal(predicted(4), predicted(4))
    assert (predicted(4) - predicted(5)).abs().min() > 0


def test_a_prediction_is_the_mean_over_the_samples_of_a_spot() -> None:
    """Samples are drawn spot by spot, so that the mean is over those of one spot."""
    model = any_weights(make_stem(samples=5))
    model.prepare(DATA, torch.arange(9), torch.arange(9), 4)
    rows, steps = torch.tensor([6, 2]), model.schedule.reverse_steps(4)
    times = model.network.embed_times(torch.tensor([step.time for step in steps]))
    conditions = model.network.embed_spots(DATA.spot[rows].float())
    samples = []
    with torch.no_grad():
        for condition, row in zip(conditions.split(1), rows.tolist(), strict=True):
            noises = [SpotNoise(4, [row], [k], CPU) for k in range(5)]
            samples.append(torch.cat([model.draw_samples(condition, times, steps, n, False)[0] for n in noises]))
    together = torch.stack(samples)
    assert together.std(1).min() > 1e-3, "samples differ"
    torch.testing.assert_close(model.predict(images_of(rows)), together.mean(1), rtol=1e-3, atol=1e-3)
    quick = model.predict_quickly(images_of(rows))
    one = model.mean_sample(images_of(rows), model.schedule.reverse_steps(20), 1, False)
    assert torch.equal(quick, one)


def test_genes_are_scaled_by_the_train_spots_alone() -> None:
    data = replace(DATA, expression=DATA.expression.clone())
    data.expression[40:] = torch.nan
    data.expression[:, 2] = 1.5
    model, plain = (any_weights(make_stem(standardize_genes=on)) for on in (True, False))
    for each in (model, plain):
        each.prepare(data, torch.arange(40), torch.arange(0), 3)
    own = data.expression[:40].double()
    deviation = own.std(0, correction=0)
    deviation[2] = 1  # a constant gene is only shifted
    torch.testing.assert_close(model.center, own.mean(0).float())
    torch.testing.assert_close(model.scale, deviation.float())
    rows = torch.arange(40, 60)
    expected = predict(plain, data, rows) * deviation.float() + own.mean(0).float()
    torch.testing.assert_close(predict(model, data, rows), expected, rtol=1e-4, atol=1e-3)
    scaled = replace(data, expression=(data.expression - model.center) / model.scale)
    losses = []
    for each, known in ((model, data), (plain, scaled)):
        torch.manual_seed(0)
        losses.append(each.loss(read_batch(known, torch.arange(40)))[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_model_that_is_read_back_predicts_the_same() -> None:
    model = any_weights(make_stem(standardize_genes=True))
    model.prepare(DATA, torch.arange(40), torch.arange(9), 2**32 - 1)
    again = make_stem(standardize_genes=True, seed=5).eval()
    again.load_state_dict(model.state_dict())
    rows = torch.arange(5)
    assert torch.equal(predict(again, DATA, rows), predict(model, DATA, rows))
    other = any_weights(make_stem(seed=6))
    both = EnsembleModel([model, other])
    mean = (predict(model, DATA, rows) + predict(other, DATA, rows)) / 2
    torch.testing.assert_close(predict(both, DATA, rows), mean, rtol=1e-4, atol=1e-4)


def test_its_options() -> None:
    entry = get_model("stem")
    assert FitConfig(**entry.training).ema == 0.9999
    config = entry.config(8, 4)
    assert (config.sampler, config.sampling_steps, config.samples) == ("ddim", 50, 20)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="--width 100: must be a multiple of --heads 6"):
        StemConfig(8, 4, width=100)
    with pytest.raises(InputError, match=r"--sampling-steps 1001: must be"):
        StemConfig(8, 4, sampling_steps=1001)
