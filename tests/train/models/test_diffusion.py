"""Diffusion against formulas written again in float64, and against a case whose noise is known in closed form."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor

from train.models.diffusion import (
    NoiseSchedule,
    SpotNoise,
    ddim_step,
    ddpm_step,
    denoised,
    noised,
    posterior_mean,
    take_noise_away,
)

SCHEDULE = NoiseSchedule.linear()
CPU = torch.device("cpu")
BETAS = np.array([1e-4 + (2e-2 - 1e-4) * t / 999 for t in range(1000)])
MEAN, DEVIATION = torch.tensor([4.0, 0.3, -1.0]), torch.tensor([1.5, 0.4, 1.0])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_schedule_is_its_formula() -> None:
    signal = [float(np.prod(1 - BETAS[: t + 1])) for t in range(1000)]
    np.testing.assert_allclose(SCHEDULE.signal, signal, rtol=1e-12)
    assert SCHEDULE.signal[0] == pytest.approx(0.9999)
    assert 3.9e-5 < SCHEDULE.signal[-1] < 4.2e-5
    other = NoiseSchedule.linear(3, 0.1, 0.3)
    np.testing.assert_allclose(other.signal, [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7], rtol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 7, 20, 50, 999, 1000])
def test_steps_go_from_the_last_time_to_no_noise(count: int) -> None:
    steps = SCHEDULE.reverse_steps(count)
    times = [step.time for step in steps]
    assert len(steps) == len(set(times)) == count
    assert times == sorted(times, reverse=True)
    assert times[0] == 999
    assert count == 1 or times[-1] == 0
    assert [step.signal for step in steps] == [SCHEDULE.signal[time] for time in times]
    assert [step.signal_before for step in steps] == [*(step.signal for step in steps[1:]), 1.0]
    assert max(np.abs(np.diff(times)), default=0) <= 999 / max(count - 1, 1) + 1


def test_noise_is_added_step_by_step() -> None:
    """q(x_t | x_0) is what t + 1 steps of q(x_t | x_{t-1}) make: the same mean, and the same variance of noise."""
    mean, variance = np.ones(1), np.zeros(1)
    for t in range(400):
        mean, variance = mean * np.sqrt(1 - BETAS[t]), variance * (1 - BETAS[t]) + BETAS[t]
    x0, noise = random(2, 3), random(2, 3, seed=1)
    expected = torch.from_numpy(mean) * x0 + torch.from_numpy(variance).sqrt() * noise
    torch.testing.assert_close(noised(x0, noise, SCHEDULE.signal[399]), expected)
    torch.testing.assert_close(denoised(expected, noise, SCHEDULE.signal[399]), x0)
    both = torch.tensor([[SCHEDULE.signal[399]], [SCHEDULE.signal[7]]], dtype=torch.float64)
    torch.testing.assert_close(noised(x0, noise, both)[0], expected[0])
    torch.testing.assert_close(noised(x0, noise, both)[1], noised(x0[1], noise[1], SCHEDULE.signal[7]))
    assert noised(x0.float(), noise.float(), both).dtype == torch.float32


def bayes(x0: Tensor, x: Tensor, signal: float, before: float) -> tuple[Tensor, float]:
    """The posterior by Bayes: what x_0 says of x at the end of the step, times what x at its beginning says."""
    alpha = signal / before
    precision = 1 / (1 - before) + alpha / (1 - alpha)
    return (x0 * before**0.5 / (1 - before) + x * alpha**0.5 / (1 - alpha)) / precision, 1 / precision


@pytest.mark.parametrize("count", [1000, 50, 5])
def test_with_the_true_noise_a_step_gives_the_posterior(count: int) -> None:
    x0, noise, fresh = random(4, 3), random(4, 3, seed=1), random(4, 3, seed=2)
    for step in SCHEDULE.reverse_steps(count)[: -1 : max(1, count // 25)]:
        x = noised(x0, noise, step.signal)
        mean, variance = bayes(x0, x, step.signal, step.signal_before)
        torch.testing.assert_close(posterior_mean(x0, x, step), mean, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(ddpm_step(x, noise, step, torch.zeros(4, 3)), mean, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(ddpm_step(x, noise, step, fresh), mean + variance**0.5 * fresh, rtol=1e-6, atol=1e-8)
        assert step.posterior_variance == pytest.approx(variance, rel=1e-6)


def test_the_posterior_variance_is_that_of_the_paper() -> None:
    """Eq. 7 of Ho et al., where steps are of one time each."""
    signal = np.cumprod(1 - BETAS)
    for step in SCHEDULE.reverse_steps(1000)[:-1]:
        t = step.time
        assert step.posterior_variance == pytest.approx((1 - signal[t - 1]) / (1 - signal[t]) * BETAS[t], rel=1e-9)


def test_the_last_step_ends_without_noise() -> None:
    step = SCHEDULE.reverse_steps(10)[-1]
    x0, noise = random(4, 3), random(4, 3, seed=1)
    x = noised(x0, noise, step.signal)
    assert step.posterior_variance == 0
    torch.testing.assert_close(ddpm_step(x, noise, step, random(4, 3, seed=2)), x0)
    torch.testing.assert_close(ddim_step(x, noise, step), x0)


def test_with_the_true_noise_a_step_of_ddim_gives_less_of_it() -> None:
    x0, noise = random(4, 3), random(4, 3, seed=1)
    for step in SCHEDULE.reverse_steps(20):
        x = noised(x0, noise, step.signal)
        torch.testing.assert_close(ddim_step(x, noise, step), noised(x0, noise, step.signal_before))


@functools.cache
def sampled(count: int, is_random: bool, n: int = 20_000) -> Tensor:
    """Samples `(n, 3)` of normal distributions, whose best prediction of noise is linear in x."""
    steps = SCHEDULE.reverse_steps(count)
    generator = torch.Generator().manual_seed(3)

    def predict_noise(x: Tensor, i: int) -> Tensor:
        s = steps[i].signal
        return (1 - s) ** 0.5 * (x - s**0.5 * MEAN) / (s * DEVIATION**2 + 1 - s)

    def draw() -> Tensor:
        return torch.randn(n, 3, generator=generator)

    return take_noise_away(draw(), predict_noise, steps, draw if is_random else None)


@pytest.mark.parametrize("is_random", [True, False])
def test_samples_have_the_mean_and_the_variance_of_the_data(is_random: bool) -> None:
    samples = sampled(1000, is_random)
    error = DEVIATION / len(samples) ** 0.5
    assert ((samples.mean(0) - MEAN).abs() < 4 * error + 0.01).all()
    torch.testing.assert_close(samples.std(0), DEVIATION, rtol=0.03, atol=0)
    assert np.corrcoef(samples.T)[np.triu_indices(3, 1)] == pytest.approx(0, abs=0.03)


def test_50_steps_of_ddim_have_the_mean_of_1000_of_ddpm() -> None:
    few, many = sampled(50, False), sampled(1000, True)
    torch.testing.assert_close(few.mean(0), many.mean(0), rtol=0, atol=0.05)
    torch.testing.assert_close(few.std(0), many.std(0), rtol=0.1, atol=0)


def test_without_chance_the_start_decides() -> None:
    step = SCHEDULE.reverse_steps(1)
    start = random(4, 3)

    def all_noise(x: Tensor, i: int) -> Tensor:
        return x

    expected = start * (1 - (1 - step[0].signal) ** 0.5) / step[0].signal ** 0.5
    torch.testing.assert_close(take_noise_away(start, all_noise, step), expected)
    drawn = take_noise_away(start, all_noise, SCHEDULE.reverse_steps(3), lambda: random(4, 3, seed=1))
    assert (drawn - take_noise_away(start, all_noise, SCHEDULE.reverse_steps(3))).abs().max() > 0.01


def test_the_noise_of_a_spot_does_not_depend_on_others() -> None:
    whole = SpotNoise(5, [3, 8, 11], range(4), CPU)
    first, second = whole.draw(6), whole.draw(6)
    assert (first.shape, first.dtype) == ((3, 4, 6), torch.float32)
    part = SpotNoise(5, [11, 3], [2], CPU)
    for expected in (first, second):
        assert torch.equal(part.draw(6), expected[[2, 0]][:, 2:3])


def test_the_noise_of_each_spot_sample_and_seed_is_its_own() -> None:
    seeds = [SpotNoise(seed, range(3), range(3), CPU).draw(2000) for seed in (0, 1, 2**32 - 1)]
    again = SpotNoise(1, range(3), range(3), CPU)
    assert torch.equal(again.draw(2000), seeds[1])
    vectors = torch.stack([*seeds, again.draw(2000)]).flatten(0, 2).numpy()
    assert np.abs(np.corrcoef(vectors)[np.triu_indices(len(vectors), 1)]).max() < 0.1
    assert vectors.mean() == pytest.approx(0, abs=0.02)
    assert vectors.std() == pytest.approx(1, abs=0.02)
