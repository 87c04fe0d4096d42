"""Products of Gaussians and their divergence from the prior, against formulas and densities written again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from train.models.gaussians import Gaussian, divergence_from_prior, product_with_prior


def some(seed: int, spots: int = 7, dimensions: int = 5) -> Gaussian:
    g = torch.Generator().manual_seed(seed)
    mean, log_variance = torch.randn(2, spots, dimensions, generator=g)
    return Gaussian(2 * mean, (2 * log_variance).exp())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_product_is_that_of_the_formulas(count: int) -> None:
    experts = [some(seed) for seed in range(count)]
    found = product_with_prior(experts)
    means, precisions = (np.stack([np.asarray(e[i], dtype=np.float64) for e in experts]) for i in (0, 1))
    variance = 1 / (1 + precisions.sum(0))
    np.testing.assert_allclose(1 / found.precision, variance, rtol=1e-5)
    np.testing.assert_allclose(found.mean, variance * (precisions * means).sum(0), rtol=1e-4, atol=1e-6)


def test_the_product_is_that_of_densities_on_a_grid() -> None:
    x = np.linspace(-12, 12, 200_001)
    experts = [some(seed, 1, 1) for seed in (3, 4)]
    density = np.exp(-(x**2) / 2)
    for mean, precision in experts:
        density = density * np.exp(-precision.item() * (x - mean.item()) ** 2 / 2)
    density /= density.sum()
    mean = (density * x).sum()
    found = product_with_prior(experts)
    assert found.mean.item() == pytest.approx(mean, abs=1e-5)
    assert 1 / found.precision.item() == pytest.approx((density * (x - mean) ** 2).sum(), rel=1e-4)


def test_an_expert_that_says_nothing_is_as_one_that_is_not_there() -> None:
    image, other = some(0), some(1)
    silent = other._replace(precision=torch.zeros_like(other.precision))
    for found, expected in zip(product_with_prior([image, silent]), product_with_prior([image]), strict=True):
        assert torch.equal(found, expected)


def test_the_divergence_is_that_of_torch() -> None:
    posterior = some(2)
    expected = kl_divergence(Normal(posterior.mean, posterior.precision.rsqrt()), Normal(0.0, 1.0)).mean()
    assert divergence_from_prior(posterior).item() == pytest.approx(expected.item(), rel=1e-5)
    prior = Gaussian(torch.zeros(3, 2), torch.ones(3, 2))
    assert divergence_from_prior(prior).item() == 0


def test_draws_have_mean_and_variance_and_gradients() -> None:
    torch.manual_seed(0)
    mean, precision = torch.tensor([[1.0, -3.0]]), torch.tensor([[4.0, 0.25]])
    mean.requires_grad_()
    precision.requires_grad_()
    drawn = Gaussian(mean.expand(20_000, 2), precision.expand(20_000, 2)).draw()
    np.testing.assert_allclose(drawn.mean(0).detach(), mean.detach()[0], atol=0.05)
    np.testing.assert_allclose(drawn.var(0).detach(), 1 / precision.detach()[0], rtol=0.05)
    drawn.square().sum().backward()
    assert mean.grad is not None
    assert precision.grad is not None
    assert (precision.grad < 0).all(), "the surer, the smaller the squares"
