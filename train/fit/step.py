"""One optimizer step: loss, gradients (in parts where an encoder holds few spots at once), clipping, update."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from train import distributed
from train.data import Batch, Inputs, SpotNiche
from train.fit.adamw import AdamW
from train.fit.batches import encode_pair
from train.fit.config import MAX_GRADIENT_NORM, FitConfig
from train.models.base import Log, Model


def trained_parameters(model: Model, inputs: Inputs) -> list[nn.Parameter]:
    """All parameters of the model, then the adapters of the encoder that is fine-tuned with it."""
    return [*model.parameters(), *encoder_parameters(inputs)]


def encoder_parameters(inputs: Inputs) -> list[nn.Parameter]:
    """What is trained of the encoder: its adapters; nothing on cached embeddings."""
    return [p for p in inputs.encoder.parameters() if p.requires_grad] if inputs.encoder is not None else []


def make_optimizer(model: Model, inputs: Inputs, config: FitConfig) -> AdamW:
    """AdamW in one fused pass over memory; adapters join the model's first group of parameters."""
    first, *others = model.parameter_groups()
    groups = [first | {"params": [*first["params"], *encoder_parameters(inputs)]}, *others]
    return AdamW(groups, config.lr, config.weight_decay)


def step(
    model: Model,
    inputs: Inputs,
    optimizer: AdamW,
    batch: Batch,
    micro_batch: int | None = None,
    clip_norm: float = MAX_GRADIENT_NORM,
) -> Log:
    """One optimizer step on a batch as it was read.

    A step with a non-finite gradient is skipped and counted. Clipping and skipping use the fused optimizer's own
    gradient scale and overflow flag, which cost no pass over the gradients and no synchronisation with the device.

    Args:
        model: To train.
        inputs: They encode the batch. If they have an encoder, it is trained too.
        optimizer: Of `make_optimizer`.
        batch: Of `read_batch`.
        micro_batch: Spots that an encoder takes at once; None: all.
        clip_norm: Gradients of a greater norm are scaled down to it; 0 leaves them as they are.

    Returns:
        What to log, on the device: the model's own values, `gradient_norm` and `skipped`.
    """
    optimizer.zero_grad()
    if inputs.encoder is None or micro_batch is None or micro_batch >= len(batch.rows):
        images = encode_pair(inputs, SpotNiche(batch.spot, batch.niche))
        loss, log = loss_of(model, replace(batch, spot=images.spot, niche=images.niche))
        loss.backward()
    else:
        log = backward_in_parts(model, inputs, batch, micro_batch)
    parameters = trained_parameters(model, inputs)
    distributed.average_gradients(parameters)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    skipped = (~torch.isfinite(norm)).float()
    excess = torch.nan_to_num(norm / (clip_norm or torch.inf), nan=1.0, posinf=1.0).clamp(min=1.0)
    # With a scale the optimizer writes all gradients too. Where it costs nothing to look, a scale of 1 is left out.
    optimizer.step(None if excess.device.type == "cpu" and excess == 1 else excess, skipped)
    model.after_step()
    return log | {"gradient_norm": torch.nan_to_num(norm), "skipped": skipped}


def loss_of(model: Model, batch: Batch) -> tuple[Tensor, Log]:
    """`Model.loss` of a batch of embeddings, in the model's precision."""
    with model.autocast(batch.spot.device):
        return model.loss(batch)


def backward_in_parts(model: Model, inputs: Inputs, batch: Batch, size: int) -> Log:
    """Add the gradients of one batch where the encoder holds only a part of it at once.

    Contrast needs all spots of a batch, so adding up the losses of its parts would be another loss. Instead the parts
    are encoded without gradients, the loss of all gives the gradient of every embedding, and each part is encoded again
    to carry these back. The result is the same as in one piece. It costs one more forward pass.

    Args:
        model: To train.
        inputs: With an encoder.
        batch: Of `read_batch`.
        size: Spots in the encoder at once.
    """
    parts = [SpotNiche(*pair) for pair in zip(batch.spot.split(size), batch.niche.split(size), strict=True)]
    states, encoded = [], []
    with torch.no_grad():
        for part in parts:
            states.append(random_state(batch.spot))
            encoded.append(encode_pair(inputs, part))
    spot, niche = (torch.cat(level).requires_grad_() for level in zip(*encoded, strict=True))
    loss, log = loss_of(model, replace(batch, spot=spot, niche=niche))
    loss.backward()
    after = random_state(batch.spot)
    assert spot.grad is not None
    assert niche.grad is not None
    gradients = zip(spot.grad.split(size), niche.grad.split(size), strict=True)
    for part, state, gradient in zip(parts, states, gradients, strict=True):
        set_random_state(state, batch.spot)  # the same dropout as before
        torch.autograd.backward(encode_pair(inputs, part), gradient)
    set_random_state(after, batch.spot)
    return log


def random_state(like: Tensor) -> tuple[Tensor, Tensor | None]:
    """The random state of the CPU, and of the GPU that a tensor is on."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(like.device) if like.is_cuda else None


def set_random_state(state: tuple[Tensor, Tensor | None], like: Tensor) -> None:
    """The reverse of `random_state`."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], like.device)
