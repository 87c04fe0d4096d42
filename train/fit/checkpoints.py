"""Where training stands, and its checkpoint on disk: from it training goes on as if it had never stopped."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hist_cache.errors import HistError
from hist_cache.files import atomic_write
from train import distributed
from train.models.hist import HistModel


@dataclass
class Progress:
    """Where training stands. best: weights of the epoch with the least validation MSE."""

    epoch: int = 0
    best_epoch: int = -1
    best_mse: float = float("inf")
    best: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    def finished(self, epochs: int, patience: int) -> bool:
        return self.epoch >= epochs or (self.best_epoch >= 0 and self.epoch - 1 - self.best_epoch >= patience)


def save_checkpoint(
    path: Path, progress: Progress, model: HistModel, optimizer: torch.optim.AdamW, order: torch.Generator
) -> None:
    """Everything that decides the epochs to come; every process's random state, written by the first."""
    states = distributed.all_gather_states(torch.get_rng_state())
    on_gpu = distributed.all_gather_states(torch.cuda.get_rng_state()) if torch.cuda.is_available() else []
    if distributed.rank() > 0:
        return
    state = {
        "progress": vars(progress),
        "model": model.trained_state(),
        "optimizer": optimizer.state_dict(),
        "order": order.get_state(),
        "rng": states,
        "cuda_rng": on_gpu,
    }
    with atomic_write(path) as aside:
        torch.save(state, aside)


def load_checkpoint(path: Path, model: HistModel, optimizer: torch.optim.AdamW, order: torch.Generator) -> Progress:
    """The reverse; `HistError` where the file is damaged, of another model or of another number of processes."""
    try:
        state = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
        if len(state["rng"]) != distributed.world_size():
            raise RuntimeError(f"written by {len(state['rng'])} processes, not {distributed.world_size()}")
        model.load_trained_state(state["model"])
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
