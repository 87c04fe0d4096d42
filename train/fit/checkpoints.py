"""Where training stands, and its checkpoint on disk: from it training goes on as if it had never stopped."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hist_cache.errors import HistError
from hist_cache.files import atomic_file
from train import distributed
from train.data import Inputs
from train.models.base import Model

ENCODER = "encoder.module."  # before the names of an encoder's adapters, among a model's weights


@dataclass
class Progress:
    """Where training stands.

    Attributes:
        epoch: Epochs that were run.
        best_epoch: The epoch with the least validation MSE (loss, with `stop_on` "loss"), from 0; -1 before the first.
        best_mse: That MSE, or loss.
        best: Its weights.
        history: What was logged, a row an epoch.
    """

    epoch: int = 0
    best_epoch: int = -1
    best_mse: float = float("inf")
    best: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    def finished(self, epochs: int, patience: int) -> bool:
        """Whether all epochs were run, or the validation error has not improved for `patience` of them."""
        return self.epoch >= epochs or (self.best_epoch >= 0 and self.epoch - 1 - self.best_epoch >= patience)


def trained_state(model: Model, inputs: Inputs) -> dict[str, Tensor]:
    """All weights of the model, and the adapters of an encoder, whose frozen weights are known from its file."""
    weights = inputs.encoder.named_parameters() if inputs.encoder is not None else ()
    return model.state_dict() | {ENCODER + name: p.detach() for name, p in weights if p.requires_grad}


def load_trained_state(model: Model, inputs: Inputs, state: dict[str, Tensor]) -> None:
    """Load what `trained_state` gave; RuntimeError where a weight is missing, unknown or of another shape."""
    if set(state) != set(trained_state(model, inputs)):
        raise RuntimeError("its weights are not those of this model")
    model.load_state_dict({name: value for name, value in state.items() if not name.startswith(ENCODER)})
    adapters = {name.removeprefix(ENCODER): value for name, value in state.items() if name.startswith(ENCODER)}
    if inputs.encoder is not None and adapters:
        inputs.encoder.load_state_dict(adapters, strict=False)


def save_checkpoint(
    path: Path,
    progress: Progress,
    model: Model,
    inputs: Inputs,
    optimizer: torch.optim.AdamW,
    order: torch.Generator,
) -> None:
    """Write everything that decides the epochs to come; every process's random state, written by the first."""
    states = distributed.all_gather_states(torch.get_rng_state())
    cuda_states = distributed.all_gather_states(torch.cuda.get_rng_state()) if torch.cuda.is_available() else []
    if distributed.rank() > 0:
        return
    state = {
        "progress": vars(progress),
        "model": trained_state(model, inputs),
        "optimizer": optimizer.state_dict(),
        "order": order.get_state(),
        "rng": states,
        "cuda_rng": cuda_states,
    }
    with atomic_file(path) as file:
        torch.save(state, file)


def load_checkpoint(
    path: Path, model: Model, inputs: Inputs, optimizer: torch.optim.AdamW, order: torch.Generator
) -> Progress:
    """Load what `save_checkpoint` wrote.

    Raises:
        HistError: The file is damaged, of another model or of another number of processes.
    """
    try:
        state = torch.load(path, map_location=inputs.device, weights_only=True)
        if len(state["rng"]) != distributed.world_size():
            raise RuntimeError(f"written by {len(state['rng'])} processes, not {distributed.world_size()}")
        load_trained_state(model, inputs, state["model"])
        optimizer.load_state_dict(state["optimizer"])
        order.set_state(state["order"].cpu())
        torch.set_rng_state(state["rng"][distributed.rank()].cpu())
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda_rng"][distributed.rank()].cpu())
        return Progress(**state["progress"])
    except (RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise HistError(
            f"{path}: cannot be continued ({str(error).splitlines()[0]}); delete it to start over"
        ) from error
