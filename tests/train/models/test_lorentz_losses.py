"""The written-out losses against the functions of `lorentz.py` and torch's own gradients of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from train.models import lorentz
from train.models.alignment import info_nce
from train.models.lorentz_losses import Cone, Contrast, contrast, entailment, mean_radii, unit_points

CONTRASTS = [Contrast(0, 2, 0.3, 0.2), Contrast(3, 0, 0.25, 0.0), Contrast(1, 2, 0.5, 0.1)]
CONES = [Cone(0, 1, 0.3, 1.0), Cone(3, 2, 0.2, 0.7), Cone(0, 2, 0.25, 1.5), Cone(1, 3, 1.0, 1.0)]


def leaves(dtype: torch.dtype, spread: float, c: float = 1.7) -> tuple[Tensor, Tensor, Tensor]:
    """Four sets of points, the first two of them close, c and tau."""
    v = torch.randn(4, 24, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 8**0.5
    v[1] = v[0] + 0.05 * v[1]
    points = lorentz.exp_map0(spread * v, c).to(dtype)
    scalars = torch.tensor(c, dtype=dtype), torch.tensor(0.1, dtype=dtype)
    return tuple(t.requires_grad_() for t in (points, *scalars))  # type: ignore[return-value]


def composed(points: Tensor, c: Tensor, tau: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hca, hea, shares, apertures = [], [], [], []
    for a, b, rows, columns in CONTRASTS:
        logits = -lorentz.pairwise_dist(points[a], points[b], c) / tau
        hca.append(rows * info_nce(logits) + columns * info_nce(logits.T))
    for parent, child, weight, eta in CONES:
        apertures.append(lorentz.half_aperture(points[parent], c))
        excess = lorentz.exterior_angle(points[parent], points[child], c) - eta * apertures[-1]
        hea.append(weight * excess.clamp_min(0).mean())
        shares.append((excess > 0).to(excess.dtype))
    return sum(hca), sum(hea), torch.stack(shares).mean(), torch.stack(apertures).mean()  # type: ignore[return-value]


def written_out(points: Tensor, c: Tensor, tau: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    unit = unit_points(points, c)
    return contrast(points, c, tau, unit, CONTRASTS), *entailment(points, c, unit, CONES)


@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-6)], ids=str)
def test_values_and_gradients_are_those_of_the_functions(dtype: torch.dtype, tolerance: float, spread: float) -> None:
    inputs = leaves(dtype, spread)
    expected, found = composed(*inputs), written_out(*inputs)
    for value, result in zip(expected, found, strict=True):
        assert result.dtype == dtype
        torch.testing.assert_close(result, value, rtol=tolerance, atol=0)
    for value, result, leaf in [(*pair, leaf) for pair in zip(expected[:2], found, strict=False) for leaf in inputs]:
        gradient = torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)[0]
        own = torch.autograd.grad(result, leaf, retain_graph=True, allow_unused=True)[0]
        if gradient is None:
            assert own is None
        else:
            # That of c is a small difference of large sums where curvature hardly shows.
            loose = 20 if leaf is inputs[1] and spread < 1 and dtype == torch.float32 else 1
            assert own is not None
            largest = gradient.abs().max().item()
            torch.testing.assert_close(own, gradient, rtol=0, atol=loose * tolerance * largest)
    assert not found[2].requires_grad
    assert not found[3].requires_grad
    radii = mean_radii(inputs[0], inputs[1], unit_points(*inputs[:2]))
    torch.testing.assert_close(radii, lorentz.radius(inputs[0], inputs[1]).mean(dim=-1))


@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_gradients_are_those_of_the_values(spread: float) -> None:
    points, c, tau = leaves(torch.float64, spread)
    points = points[:, :5].detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda *inputs: written_out(*inputs)[:2], (points, c, tau))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("c", [0.1, 10.0])
def test_coincident_zero_and_far_points_have_finite_gradients(c: float, dtype: torch.dtype) -> None:
    points, *_ = leaves(torch.float64, 1.0)
    sizes = torch.tensor([0.0, 1e-12, 1e-6, 0.9e-3, 0.2 * c**-0.5, 1.0, 1e3, 3e4], dtype=torch.float64)
    rows = torch.nn.functional.normalize(points[0, :8].detach(), dim=-1) * sizes.unsqueeze(-1)
    same = torch.stack([rows, rows, rows * 2 / 3, rows.flip(0)]).to(dtype).requires_grad_()
    inputs = same, torch.tensor(c, requires_grad=True), torch.tensor(0.01, requires_grad=True)
    hca, hea, *_ = written_out(*inputs)
    gradients = torch.autograd.grad(hca + hea, inputs)
    assert all(g.dtype == leaf.dtype for g, leaf in zip(gradients, inputs, strict=True))
    assert all(value.isfinite().all() for value in (hca, hea, *gradients))


def test_autocast_around_either_pass_changes_nothing() -> None:
    inputs = leaves(torch.float32, 1.0)
    results = []
    for forward, backward in ((False, False), (True, False), (True, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=forward):
            hca, hea, *_ = written_out(*inputs)
        with torch.autocast("cpu", torch.bfloat16, enabled=backward):
            results.append((hca, hea, *torch.autograd.grad(hca + hea, inputs)))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_without_a_gradient_the_losses_are_the_same() -> None:
    inputs = leaves(torch.float32, 1.0)
    expected = written_out(*inputs)
    with torch.no_grad():
        found = written_out(*inputs)
    assert not any(value.requires_grad for value in found)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
