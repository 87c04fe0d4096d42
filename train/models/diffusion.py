"""Diffusion: noise is added to vectors in many small steps, and taken away again (Ho et al., NeurIPS 2020).

Time counts from 0, where there is little noise, to T - 1, where there is almost nothing else. `signal` is the share of
the variance at a time that is the vector's: the product of 1 - beta over all steps up to this time. Before time 0 it
is 1. Sampling goes through all times backwards (`ddpm`), or through some of them, without drawing noise on the way
(`ddim`; Song et al., ICLR 2021).

The variance of a reverse step is that of the posterior. It is fixed: nothing about it is learnt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TIMES = 1000
FIRST_BETA, LAST_BETA = 1e-4, 2e-2


class ReverseStep(NamedTuple):
    """A step back in time.

    Attributes:
        time: Where it begins.
        signal: There.
        signal_before: Where it ends; 1 in the last step, which ends at a vector without noise.
    """

    time: int
    signal: float
    signal_before: float

    @property
    def posterior_variance(self) -> float:
        """Of x at the end of the step, where x at its beginning and the vector without noise are known."""
        return (1 - self.signal_before) / (1 - self.signal) * (1 - self.signal / self.signal_before)


@dataclass(frozen=True)
class NoiseSchedule:
    """How much noise there is at each time.

    Attributes:
        signal: Share of the variance that is the vector's, at each of T times; it falls.
    """

    signal: tuple[float, ...]

    @classmethod
    def linear(cls, times: int = TIMES, first: float = FIRST_BETA, last: float = LAST_BETA) -> NoiseSchedule:
        """The schedule whose variances of added noise (beta) grow linearly from `first` to `last`."""
        return cls(tuple(np.cumprod(1 - np.linspace(first, last, times)).tolist()))

    def reverse_steps(self, count: int) -> list[ReverseStep]:
        """Steps from the last time to the vector without noise, with times as evenly spaced as they can be.

        Args:
            count: Number of steps, 1 to T. With several, the last one begins at time 0.
        """
        times = np.linspace(len(self.signal) - 1, 0, count).round().astype(int).tolist()
        ends = [*(self.signal[time] for time in times[1:]), 1.0]
        return [ReverseStep(time, self.signal[time], end) for time, end in zip(times, ends, strict=True)]


def noised(x0: Tensor, noise: Tensor, signal: Tensor | float) -> Tensor:
    """A draw of q(x_t | x_0).

    Args:
        x0: `(..., G)` vectors without noise.
        noise: `(..., G)` standard normal numbers.
        signal: At the times of the vectors: one number, or a tensor float64 that broadcasts to `x0`.
    """
    signal = torch.as_tensor(signal, dtype=torch.float64)
    return signal.sqrt().to(x0.dtype) * x0 + (1 - signal).sqrt().to(x0.dtype) * noise


def denoised(x: Tensor, noise: Tensor, signal: float) -> Tensor:
    """The reverse of `noised`: x_0 of vectors `x` `(..., G)` whose noise is known, or was predicted."""
    return (x - math.sqrt(1 - signal) * noise) / math.sqrt(signal)


def posterior_mean(x0: Tensor, x: Tensor, step: ReverseStep) -> Tensor:
    """The mean `(..., G)` of x at the end of a step, where `x` at its beginning and `x0` are known."""
    alpha = step.signal / step.signal_before
    of_x0 = math.sqrt(step.signal_before) * (1 - alpha) / (1 - step.signal)
    of_x = math.sqrt(alpha) * (1 - step.signal_before) / (1 - step.signal)
    return of_x0 * x0 + of_x * x


def ddpm_step(x: Tensor, predicted: Tensor, step: ReverseStep, noise: Tensor) -> Tensor:
    """A draw `(..., G)` at the end of a step: the posterior's mean for the predicted noise, and noise of its variance.

    Args:
        x: `(..., G)` at the beginning of the step.
        predicted: `(..., G)`, the noise in `x`.
        step: Of any length.
        noise: `(..., G)` standard normal numbers.
    """
    x0 = denoised(x, predicted, step.signal)
    return posterior_mean(x0, x, step) + math.sqrt(step.posterior_variance) * noise


def ddim_step(x: Tensor, predicted: Tensor, step: ReverseStep) -> Tensor:
    """The end of a step without chance (eta = 0), `(..., G)`: the predicted noise stays, and there is less of it.

    Args:
        x: `(..., G)` at the beginning of the step.
        predicted: `(..., G)`, the noise in `x`.
        step: Of any length.
    """
    return noised(denoised(x, predicted, step.signal), predicted, step.signal_before)


def take_noise_away(
    start: Tensor,
    predict_noise: Callable[[Tensor, int], Tensor],
    steps: Sequence[ReverseStep],
    draw: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Samples `(..., G)` from noise. Nothing is clipped: expression is no image of -1 to 1.

    Args:
        start: `(..., G)` standard normal numbers.
        predict_noise: Gives the noise in x `(..., G)` at the beginning of step `i`, counted from 0.
        steps: Of `NoiseSchedule.reverse_steps`.
        draw: Gives standard normal numbers `(..., G)`, anew in each step: steps are those of DDPM. Without it they are
            those of DDIM.
    """
    x = start
    for i, step in enumerate(steps):
        predicted = predict_noise(x, i)
        x = ddim_step(x, predicted, step) if draw is None else ddpm_step(x, predicted, step, draw())
    return x


class SpotNoise:
    """Noise of each spot and sample by itself: it does not depend on the other spots and samples that are drawn.

    It comes from a generator that is counter-based (Philox). The key is the seed and the spot, and the counter begins
    at the sample. It is drawn on the CPU, so that it is the same on every device.

    Args:
        seed: From 0.
        spots: A number of each of n spots, from 0.
        samples: Numbers of k samples.
        device: Where the noise goes.
    """

    def __init__(self, seed: int, spots: Sequence[int], samples: Sequence[int], device: torch.device) -> None:
        self._device = device
        self._streams = [
            [
                np.random.Generator(np.random.Philox(key=seed + (spot << 64), counter=sample << 192))
                for sample in samples
            ]
            for spot in spots
        ]

    def draw(self, width: int) -> Tensor:
        """The next standard normal numbers `(n, k, width)` float32 of all spots and samples."""
        numbers = np.empty((len(self._streams), len(self._streams[0]), width), dtype=np.float32)
        for of_spot, streams in zip(numbers, self._streams, strict=True):
            for out, stream in zip(of_spot, streams, strict=True):
                stream.standard_normal(dtype=np.float32, out=out)
        return torch.from_numpy(numbers).to(self._device)
