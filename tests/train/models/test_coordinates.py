"""Coordinates on one scale a slide, turned at random, and their Fourier features."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from train.models.coordinates import LONGEST_SHIFT, fourier_features, turned_at_random, unit_coordinates


def two_slides() -> tuple[Tensor, Tensor]:
    """Positions in um: 60 spots on a wide slide, 40 on a tall one, mixed."""
    g = torch.Generator().manual_seed(0)
    size = torch.cat([torch.tensor([[6500.0, 2000.0]]).expand(60, 2), torch.tensor([[900.0, 4000.0]]).expand(40, 2)])
    slide = torch.arange(2).repeat_interleave(torch.tensor([60, 40]))
    mixed = torch.randperm(100, generator=g)
    return (torch.rand(100, 2, generator=g) * size + 300)[mixed], slide[mixed]


def test_each_slide_is_centred_and_keeps_its_aspect_ratio() -> None:
    position, slide = two_slides()
    found = unit_coordinates(position, slide)
    for own in (0, 1):
        xy, unit = position[slide == own].double().numpy(), found[slide == own].double().numpy()
        low, high = xy.min(0), xy.max(0)
        np.testing.assert_allclose(unit, (xy - (low + high) / 2) / ((high - low).max() / 2), atol=1e-6)
        assert np.abs(unit).max() == 1
        np.testing.assert_allclose(unit.min(0), -unit.max(0), atol=1e-6)
        extent, was = np.ptp(unit, axis=0), np.ptp(xy, axis=0)
        assert extent[0] / extent[1] == pytest.approx(was[0] / was[1], rel=1e-5)


@pytest.mark.parametrize(("unit", "shift"), [(0.25, 0.0), (1.0, 20_000.0), (3.7, -512.0)])
def test_unit_and_origin_do_not_matter(unit: float, shift: float) -> None:
    position, slide = two_slides()
    moved = (position.double() * unit + shift).float()
    torch.testing.assert_close(unit_coordinates(moved, slide), unit_coordinates(position, slide), atol=1e-5, rtol=0)


def test_a_slide_does_not_depend_on_others() -> None:
    position, slide = two_slides()
    whole, own = unit_coordinates(position, slide), slide == 1
    assert torch.equal(unit_coordinates(position[own], slide[own]), whole[own])


@pytest.mark.parametrize("direction", [(1.0, 0.0), (0.0, 1.0), (1.0, -2.0)])
def test_spots_on_a_line(direction: tuple[float, float]) -> None:
    position = torch.linspace(0, 900, 10).unsqueeze(1) * torch.tensor(direction)
    found = unit_coordinates(position, torch.zeros(10, dtype=torch.int64))
    assert found.isfinite().all()
    assert found.abs().max() == 1


def test_a_slide_of_one_spot_and_spots_in_one_place() -> None:
    position, slide = torch.full((4, 2), 1234.5), torch.tensor([0, 3, 3, 3])
    assert torch.equal(unit_coordinates(position, slide), torch.zeros(4, 2))
    assert unit_coordinates(position[:0], slide[:0]).shape == (0, 2)


def test_turns_keep_distances_and_reach_everywhere() -> None:
    torch.manual_seed(0)
    position, slide = two_slides()
    unit = unit_coordinates(position, slide)
    determinants, angles, shifts = [], [], []
    for _ in range(400):
        turned = turned_at_random(unit)
        torch.testing.assert_close(torch.cdist(turned, turned), torch.cdist(unit, unit), atol=2e-3, rtol=0)
        affine = affine_map(unit, turned)
        matrix, shift = affine[:2], affine[2]
        determinants.append(torch.linalg.det(matrix).item())
        angles.append(math.atan2(matrix[0, 1], matrix[0, 0]))
        shifts.append(shift.tolist())
    assert 0.4 < np.mean(np.array(determinants) > 0) < 0.6
    assert np.histogram(angles, 8, (-math.pi, math.pi))[0].min() > 25
    assert 0.9 * LONGEST_SHIFT < np.abs(shifts).max() <= LONGEST_SHIFT + 1e-5


def affine_map(unit: Tensor, turned: Tensor) -> Tensor:
    """The `(3, 2)` affine map that was drawn, by least squares: two rows of the matrix, one of the shift."""
    return torch.linalg.lstsq(torch.cat([unit, torch.ones(len(unit), 1)], dim=1), turned).solution


def test_turns_follow_the_global_random_state() -> None:
    unit = torch.rand(5, 2)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(turned_at_random(unit))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])


def test_fourier_features_are_those_of_numpy() -> None:
    places = torch.rand(6, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = fourier_features(places, 3)
    x = places.double().numpy()
    angles = np.stack([x[:, axis] * math.pi * 2**k for axis in (0, 1) for k in range(3)], axis=1)
    np.testing.assert_allclose(found, np.concatenate([x, np.sin(angles), np.cos(angles)], axis=1), atol=1e-5)
    assert fourier_features(places, 8).shape == (6, 34)
