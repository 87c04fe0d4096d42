"""The exponential moving average of weights over steps, which is validated and tested in place of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

DECAY_WARM_UP = 10.0
"""The decay of step t is at most (1 + t) / (10 + t), so that the average soon forgets the weights that were drawn."""


class WeightAverage:
    """The average of some parameters; without decay it does nothing and costs nothing.

    Args:
        parameters: Those that are trained.
        decay: Of a step, 0 to 1; 0 keeps no average.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._decay, self._steps = decay, 0
        self._parameters = list(parameters) if decay else []
        self._values: list[Tensor] = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after a step into the average."""
        if not self._parameters:
            return
        decay = min(self._decay, (1 + self._steps) / (DECAY_WARM_UP + self._steps))
        self._steps += 1
        torch._foreach_lerp_(self._values, [p.detach() for p in self._parameters], 1 - decay)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """A context in which the parameters have the values of their average."""
        weights = [p.detach().clone() for p in self._parameters]
        self.apply()
        try:
            yield
        finally:
            self._set(weights)

    def apply(self) -> None:
        """Give the parameters the values of their average."""
        self._set(self._values)

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it; {} where there is no average."""
        return {"steps": self._steps, "values": self._values} if self._parameters else {}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave; RuntimeError where it is that of other parameters."""
        values = state.get("values", [])
        if [v.shape for v in values] != [v.shape for v in self._values]:
            raise RuntimeError("its average of weights is not that of this model")
        self._steps = int(state.get("steps", 0))
        for own, value in zip(self._values, values, strict=True):
            own.copy_(value)
