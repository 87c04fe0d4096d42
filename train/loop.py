"""Training: epochs over indices, early stopping on the validation slides, checkpoints; one device sync an epoch."""

from __future__ import annotations

import pickle
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hist_cache.console import say
from hist_cache.errors import HistError, InputError
from hist_cache.files import written_aside
from train.data import SpotData
from train.model import HistModel
from train.protocols import Tested

MAX_GRADIENT_NORM = 5.0  # entailment gradients reach 1e4 at a cone's border
PREDICT_BATCH = 4096
CHECKPOINT_EVERY_S = 60.0


@dataclass(frozen=True)
class LoopConfig:
    """The defaults are the paper's (HiST, appendix B.2)."""

    epochs: int = 200
    patience: int = 10
    batch_size: int = 128
    lr: float = 1e-4
    weight_decay: float = 0.01
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be above 0")


@dataclass
class Progress:
    """Where training stands. best: weights of the epoch with the least validation MSE."""

    epoch: int = 0
    best_epoch: int = -1
    best_mse: float = float("inf")
    best: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    def finished(self, config: LoopConfig) -> bool:
        return self.epoch >= config.epochs or (
            self.best_epoch >= 0 and self.epoch - 1 - self.best_epoch >= config.patience
        )


def make_optimizer(model: HistModel, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW in one fused pass over memory; no weight decay on the geometry's parameters."""
    geometry = {id(p) for p in model.geometry_parameters()}
    free = [p for p in model.parameters() if id(p) in geometry and p.requires_grad]
    decayed = [p for p in model.parameters() if id(p) not in geometry]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def step(model: HistModel, optimizer: torch.optim.AdamW, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """One optimiser step on (spot, niche, expression, niche_expression); returns what to log, on the device.

    A step with a non-finite gradient is skipped and counted. Clipping and skipping ride on the fused optimiser's
    own gradient scale and overflow flag, which cost no pass over the gradients and no sync.
    """
    loss, log = model(*batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    bad = (~torch.isfinite(norm)).float()
    optimizer.grad_scale = torch.nan_to_num(norm / MAX_GRADIENT_NORM, nan=1.0, posinf=1.0).clamp(min=1.0)  # type: ignore[attr-defined]
    optimizer.found_inf = bad  # type: ignore[attr-defined]
    optimizer.step()
    model.constrain_()
    return log | {"gradient_norm": torch.nan_to_num(norm), "skipped": bad}


def gather(data: SpotData, rows: Tensor) -> tuple[Tensor, ...]:
    """A batch by index: embeddings as float32, profiles as they are."""
    return (
        data.spot[rows].float(),
        data.niche[rows].float(),
        data.expression[rows],
        data.niche_expression[rows],
    )


def train_epoch(
    model: HistModel,
    optimizer: torch.optim.AdamW,
    data: SpotData,
    rows: Tensor,
    batch_size: int,
    order: torch.Generator,
) -> dict[str, float]:
    """All `rows` once in random order; the mean of every logged value over the steps, `skipped` as a count.

    A last batch that is not full is left out (others take its spots next epoch): contrast needs its negatives.
    """
    model.train()
    rows = rows[torch.randperm(len(rows), generator=order).to(rows.device)]
    total: dict[str, Tensor] = {}
    steps = max(1, len(rows) // batch_size)
    for i in range(steps):
        log = step(model, optimizer, gather(data, rows[i * batch_size : (i + 1) * batch_size]))
        total = {k: total[k] + v if total else v for k, v in log.items()}
    names = list(total)
    values = torch.stack([total[k].float() for k in names]).tolist()  # the epoch's one sync
    return {k: v if k == "skipped" else v / steps for k, v in zip(names, values, strict=True)}


@torch.no_grad()
def predict(model: HistModel, data: SpotData, rows: Tensor) -> Tensor:
    """(n, G) predictions for `rows`; only their image embeddings are read."""
    model.eval()
    return torch.cat(
        [model.predict(data.spot[part].float(), data.niche[part].float()) for part in rows.split(PREDICT_BATCH)]
    )


class Interrupt:
    """Ctrl-C (or Slurm's SIGTERM) ends the epoch first, so that what is saved is whole; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        say("stopping at the end of this epoch (once more to stop at once)")

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def fit(
    model: HistModel,
    data: SpotData,
    train: Tensor,
    val: Tensor,
    config: LoopConfig,
    checkpoint: Path,
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
    tested: Tested = "best",
) -> Progress:
    """Train for `epochs`, or until the validation MSE has not improved for `patience`; leaves the best weights, or
    the last.

    Goes on from `checkpoint` if there is one, with the same result as if it had never stopped. Interrupted, it leaves
    a checkpoint, gives the model the best weights so far and raises KeyboardInterrupt.
    """
    optimizer = make_optimizer(model, config)
    order = torch.Generator().manual_seed(config.seed)
    progress = load_checkpoint(checkpoint, model, optimizer, order) if checkpoint.exists() else Progress()
    saved = time.monotonic()
    with Interrupt() as interrupt:
        while not progress.finished(config) and not interrupt.asked:
            started = time.monotonic()
            row = {"epoch": float(progress.epoch)} | train_epoch(
                model, optimizer, data, train, config.batch_size, order
            )
            row["val_mse"] = F.mse_loss(predict(model, data, val), data.expression[val]).item()
            row["seconds"] = time.monotonic() - started
            if row["val_mse"] < progress.best_mse:
                progress.best_mse, progress.best_epoch = row["val_mse"], progress.epoch
                progress.best = {k: v.detach().clone() for k, v in model.state_dict().items()}
            progress.history.append(row)
            progress.epoch += 1
            on_epoch(row)
            if interrupt.asked or time.monotonic() - saved > CHECKPOINT_EVERY_S:
                save_checkpoint(checkpoint, progress, model, optimizer, order)
                saved = time.monotonic()
    if progress.best_epoch < 0:
        raise HistError("training diverged: no epoch had a finite validation error; try a lower --lr")
    if not progress.finished(config):
        model.load_state_dict(progress.best)
        raise KeyboardInterrupt
    if tested == "best":
        model.load_state_dict(progress.best)
    return progress


def save_checkpoint(
    path: Path, progress: Progress, model: HistModel, optimizer: torch.optim.AdamW, order: torch.Generator
) -> None:
    """Everything that decides the epochs to come."""
    state = {
        "progress": vars(progress),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "order": order.get_state(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    with written_aside(path) as aside:
        torch.save(state, aside)


def load_checkpoint(path: Path, model: HistModel, optimizer: torch.optim.AdamW, order: torch.Generator) -> Progress:
    """The reverse; `HistError` where the file is damaged or of another model."""
    try:
        state = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        order.set_state(state["order"].cpu())
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda_rng"]])
        return Progress(**state["progress"])
    except (RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise HistError(
            f"{path}: cannot be continued ({str(error).splitlines()[0]}); delete it to start over"
        ) from error
