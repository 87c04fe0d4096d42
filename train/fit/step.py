"""The gradient of a whole batch where the encoder can hold only a part of it at once.

Contrast needs all spots of a batch, so adding up the losses of its parts would be another loss. Instead the parts are
encoded without gradients, the loss of all gives the gradient of every embedding, and each part is encoded again to
carry these back. The same numbers as in one piece, for one more forward pass of the encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.models.hist import HistModel


def backward_in_parts(model: HistModel, batch: tuple[Tensor, ...], size: int) -> dict[str, Tensor]:
    """Add the gradients of one batch (spot, niche, expression, niche_expression), `size` spots in the encoder at once;
    returns what to log."""
    spot, niche, expression, niche_expression = batch
    parts = list(zip(spot.split(size), niche.split(size), strict=True))
    states, encoded = [], []
    with torch.no_grad():
        for part in parts:
            states.append(random_state(spot))
            encoded.append(model.encode(*part))
    spots, niches = (torch.cat(level).requires_grad_() for level in zip(*encoded, strict=True))
    loss, log = model.loss(spots, niches, expression, niche_expression)
    loss.backward()
    after = random_state(spot)
    assert spots.grad is not None
    assert niches.grad is not None
    gradients = zip(spots.grad.split(size), niches.grad.split(size), strict=True)
    for part, state, gradient in zip(parts, states, gradients, strict=True):
        set_random_state(state)  # the same dropout as before
        torch.autograd.backward(model.encode(*part), gradient)
    set_random_state(after)
    return log


def random_state(like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Of the CPU, and of the GPU that a tensor is on."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(like.device) if like.is_cuda else None


def set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
