"""The residual network against the same formulas in numpy, and dropout against its probability."""

import math

import numpy as np
import pytest
import torch
from scipy.special import erf
from scipy.stats import binomtest, chisquare

from train.models.streams import Dropout, ResidualMLP, Stream, batched_linear, encode


def layer_norm(x: np.ndarray, layer: torch.nn.LayerNorm) -> np.ndarray:
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.eps)
    return scaled * layer.weight.detach().double().numpy() + layer.bias.detach().double().numpy()


def linear(x: np.ndarray, layer: torch.nn.Linear) -> np.ndarray:
    return x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()


def reference(network: ResidualMLP, x: np.ndarray) -> np.ndarray:
    x = linear(layer_norm(x, network.enter[0]), network.enter[1])
    for norm, widen, _, narrow, _ in network.blocks:
        hidden = linear(layer_norm(x, norm), widen)
        x = x + linear(hidden * (1 + erf(hidden / math.sqrt(2))) / 2, narrow)
    return layer_norm(x, network.leave)


@pytest.fixture
def network() -> ResidualMLP:
    torch.manual_seed(0)
    return ResidualMLP(12, 32, 3, 0.5).eval()


def test_the_network_is_its_formula(network: ResidualMLP) -> None:
    x = torch.randn(7, 12)
    np.testing.assert_allclose(network(x).detach().numpy(), reference(network, x.double().numpy()), atol=2e-6)


def test_under_autocast_only_products_lose_digits(network: ResidualMLP) -> None:
    """The residual sum stays float32: a part of the input far below bf16's resolution of the sum is not lost."""
    x = torch.randn(64, 12)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(x)
    assert out.dtype == torch.float32
    error = (out.detach().double().numpy() - reference(network, x.double().numpy())).std()
    assert 1e-5 < error < 0.01  # each product rounds to 2^-9, and the sum does not round again
    for block in network.blocks:  # without the branches what enters leaves, in float32
        torch.nn.init.zeros_(block[3].weight)
        torch.nn.init.zeros_(block[3].bias)
    entered = []
    network.leave.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16):
        network(x)
        assert torch.equal(entered[0], network.enter(x).float())
    assert entered[0].dtype == torch.float32


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_dropout_zeroes_that_share_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(1)
    x = torch.ones(251, 399)
    out = Dropout(p)(x)
    zeros = out == 0
    assert binomtest(int(zeros.sum()), zeros.numel(), p).pvalue > 1e-4
    torch.testing.assert_close(out[~zeros], torch.full_like(out[~zeros], 1 / (1 - p)), rtol=2**-17 / (1 - p), atol=0)
    by_place = [int(zeros.flatten()[i::4].sum()) for i in range(4)]  # four elements share a random integer
    assert chisquare(by_place, [len(zeros.flatten()[i::4]) * sum(by_place) / zeros.numel() for i in range(4)])[1] > 1e-4
    pairs = (zeros.flatten()[:-1] & zeros.flatten()[1:]).float().mean().item()
    assert abs(pairs - p * p) < 5 * p / math.sqrt(zeros.numel())


def test_dropout_is_as_the_seed_has_it_and_nothing_in_evaluation() -> None:
    x, layer = torch.randn(5, 7), Dropout(0.3)
    outs = []
    for _ in range(2):
        torch.manual_seed(2)
        outs.append(layer(x))
    assert torch.equal(*outs)
    assert not torch.equal(layer(x), outs[0])
    assert layer.eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_dropout_of_bf16_is_float32_with_the_exact_scale() -> None:
    torch.manual_seed(3)
    out = Dropout(0.1)(torch.ones(64, 64, dtype=torch.bfloat16))
    assert out.dtype == torch.float32
    assert out.max().item() == pytest.approx(65536 / (65536 - 6554), rel=1e-6)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 0.02)])
def test_together_or_one_by_one(precision: str, tolerance: float) -> None:
    """Streams of different inputs give the same together, and so do the gradients of all of their parameters."""
    torch.manual_seed(4)
    streams = [Stream(inputs, 16, 2, 0.0) for inputs in (9, 9, 5)]
    inputs = [torch.randn(7, n, requires_grad=True) for n in (9, 9, 5)]
    leaves = [*inputs, *(p for stream in streams for p in stream.parameters())]
    weights = torch.randn(3, 7, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        together = encode(streams, inputs)
        alone = torch.stack([stream(x) for stream, x in zip(streams, inputs, strict=True)])
    torch.testing.assert_close(together, alone, rtol=tolerance, atol=tolerance)
    found, expected = (torch.autograd.grad((out * weights).sum(), leaves) for out in (together, alone))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= tolerance * b.norm()


def test_the_gradient_of_layers_together() -> None:
    torch.manual_seed(5)
    shapes = [(2, 5, 3), (4, 3), (4, 3), (4,), (4,)]  # two layers from 3 to 4 numbers
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda *values: batched_linear(torch.float64, *values), leaves)


def test_dropout_of_networks_together_differs_between_them() -> None:
    torch.manual_seed(6)
    stream = Stream(4, 32, 1, 0.5)
    x = torch.randn(6, 4)
    one, other = encode([stream, stream], [x, x])
    assert not torch.equal(one, other)
    assert torch.equal(*encode([stream.eval(), stream], [x, x]))
