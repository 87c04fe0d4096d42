"""Training: epochs over indices, early stopping on the validation slides, checkpoints; one device sync an epoch."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hist_cache.console import say
from hist_cache.errors import HistError, InputError
from train import distributed
from train.data import SpotData
from train.experiments.protocols import Tested
from train.fit.checkpoints import Progress, load_checkpoint, save_checkpoint
from train.fit.step import backward_in_parts
from train.models.hist import HistModel

MAX_GRADIENT_NORM = 5.0  # entailment gradients reach 1e4 at a cone's border
PREDICT_BATCH = 4096
ENCODE_BATCH = 128  # where an encoder runs
CHECKPOINT_EVERY_S = 60.0


@dataclass(frozen=True)
class FitConfig:
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


OUT_OF_MEMORY = (
    "out of memory while tuning the encoder: give --micro-batch N to encode N spots at once (the loss stays that of "
    "the whole batch), or --grad-checkpoint"
)


@dataclass(frozen=True)
class Reading:
    """How an encoder that is tuned is fed; nothing on cached embeddings."""

    micro_batch: int | None = None
    """Spots encoded at once; the loss is over the whole batch all the same."""
    augment: bool = False
    """Turn and mirror the crops of a spot, spot and niche alike, while training."""

    def __post_init__(self) -> None:
        if self.micro_batch is not None and self.micro_batch < 1:
            raise InputError(f"--micro-batch {self.micro_batch}: must be above 0")


def make_optimizer(model: HistModel, config: FitConfig) -> torch.optim.AdamW:
    """AdamW in one fused pass over memory; no weight decay on the geometry's parameters."""
    geometry = {id(p) for p in model.geometry_parameters()}
    free = [p for p in model.parameters() if id(p) in geometry and p.requires_grad]
    decayed = [p for p in model.parameters() if id(p) not in geometry and p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def step(
    model: HistModel, optimizer: torch.optim.AdamW, batch: tuple[Tensor, ...], micro_batch: int | None = None
) -> dict[str, Tensor]:
    """One optimiser step on (spot, niche, expression, niche_expression); returns what to log, on the device.

    micro_batch: spots that an encoder takes at once. A step with a non-finite gradient is skipped and counted.
    Clipping and skipping ride on the fused optimiser's own gradient scale and overflow flag, which cost no pass over
    the gradients and no sync.
    """
    optimizer.zero_grad(set_to_none=True)
    if model.encoder is None or micro_batch is None or micro_batch >= len(batch[0]):
        loss, log = model(*batch)
        loss.backward()
    else:
        log = backward_in_parts(model, batch, micro_batch)
    distributed.average_gradients(model.parameters())
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    bad = (~torch.isfinite(norm)).float()
    optimizer.grad_scale = torch.nan_to_num(norm / MAX_GRADIENT_NORM, nan=1.0, posinf=1.0).clamp(min=1.0)  # type: ignore[attr-defined]
    optimizer.found_inf = bad  # type: ignore[attr-defined]
    optimizer.step()
    model.constrain_()
    return log | {"gradient_norm": torch.nan_to_num(norm), "skipped": bad}


def gather(data: SpotData, rows: Tensor) -> tuple[Tensor, ...]:
    """A batch by index: what the model's images are made from, and the profiles."""
    spot, niche = images_of(data, rows)
    return spot, niche, data.expression[rows], data.niche_expression[rows]


def images_of(data: SpotData, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings as float32, or what the frontier of an encoder that is tuned has."""
    if data.frontier is not None:
        return data.frontier.read(rows)
    return data.spot[rows].float(), data.niche[rows].float()


def batches(data: SpotData, chunks: list[Tensor], augment: bool) -> Iterator[tuple[Tensor, ...]]:
    """The batches of these rows; what must be read from disk is read ahead."""
    if data.frontier is None:
        yield from (gather(data, rows) for rows in chunks)
        return
    from train.finetune.inputs import prefetched

    for rows, (spot, niche) in zip(chunks, prefetched(data.frontier, chunks, augment), strict=True):
        yield spot, niche, data.expression[rows], data.niche_expression[rows]


def train_epoch(
    model: HistModel,
    optimizer: torch.optim.AdamW,
    data: SpotData,
    rows: Tensor,
    batch_size: int,
    order: torch.Generator,
    reading: Reading | None = None,
) -> dict[str, float]:
    """All `rows` once in random order; the mean of every logged value over the steps, `skipped` as a count.

    A last batch that is not full is left out (others take its spots next epoch): contrast needs its negatives.
    """
    reading = reading or Reading()
    model.train()
    rows = rows[torch.randperm(len(rows), generator=order).to(rows.device)]
    total: dict[str, Tensor] = {}
    steps = max(1, len(rows) // batch_size)
    chunks = [distributed.shard(rows[i * batch_size : (i + 1) * batch_size]) for i in range(steps)]
    for batch in batches(data, chunks, reading.augment):
        log = step(model, optimizer, batch, reading.micro_batch)
        total = {k: total[k] + v if total else v for k, v in log.items()}
    names = list(total)
    # The epoch's one sync; each process has its own spots' MSE.
    values = (
        distributed.all_reduce_sum(torch.stack([total[k].float() for k in names])) / distributed.world_size()
    ).tolist()
    return {k: v if k == "skipped" else v / steps for k, v in zip(names, values, strict=True)}


@torch.no_grad()
def encode(model: HistModel, data: SpotData, rows: Tensor, reading: Reading | None = None) -> tuple[Tensor, Tensor]:
    """(n, D) spot and niche embeddings of `rows`: the cached ones, or those of the encoder that is tuned."""
    model.eval()
    if data.frontier is None:
        return images_of(data, rows)
    size = (reading.micro_batch if reading else None) or ENCODE_BATCH
    parts = [model.encode(*images_of(data, part)) for part in rows.split(size)]
    return torch.cat([spot for spot, _ in parts]), torch.cat([niche for _, niche in parts])


@torch.no_grad()
def decode(model: HistModel, embedded: tuple[Tensor, Tensor]) -> Tensor:
    """(n, G) predictions from embeddings."""
    model.eval()
    chunks = zip(*(level.split(PREDICT_BATCH) for level in embedded), strict=True)
    return torch.cat([model.decode(model.images(spot, niche)) for spot, niche in chunks])


def predict(model: HistModel, data: SpotData, rows: Tensor, reading: Reading | None = None) -> Tensor:
    """(n, G) predictions for `rows`; only their images are read."""
    return decode(model, encode(model, data, rows, reading))


def validation_mse(model: HistModel, data: SpotData, rows: Tensor, reading: Reading | None = None) -> float:
    """Over all spots and genes; each process predicts its share of the spots."""
    own = distributed.shard(rows)
    error = predict(model, data, own, reading) - data.expression[own] if len(own) else data.expression[own]
    total = distributed.all_reduce_sum(error.double().square().sum())
    return total.item() / (len(rows) * data.expression.shape[1])


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
    config: FitConfig,
    checkpoint: Path | None,
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
    tested: Tested = "best",
    reading: Reading | None = None,
) -> Progress:
    """Train for `epochs`, or until the validation MSE has not improved for `patience`; leaves the best weights, or
    the last.

    Goes on from `checkpoint` if there is one, with the same result as if it had never stopped; None keeps none.
    Interrupted, it leaves a checkpoint, gives the model the best weights so far and raises KeyboardInterrupt.
    """
    optimizer = make_optimizer(model, config)
    order = torch.Generator().manual_seed(config.seed)
    stopped_before = checkpoint if checkpoint and checkpoint.exists() else None
    progress = load_checkpoint(stopped_before, model, optimizer, order) if stopped_before else Progress()
    saved = time.monotonic()
    with Interrupt() as interrupt:
        stopping = distributed.any_rank(interrupt.asked)
        while not progress.finished(config.epochs, config.patience) and not stopping:
            started = time.monotonic()
            row = {"epoch": float(progress.epoch)} | train_epoch(
                model, optimizer, data, train, config.batch_size, order, reading
            )
            row["val_mse"] = validation_mse(model, data, val, reading)
            row["seconds"] = time.monotonic() - started
            if row["val_mse"] < progress.best_mse:
                progress.best_mse, progress.best_epoch = row["val_mse"], progress.epoch
                progress.best = {k: v.detach().clone() for k, v in model.trained_state().items()}
            progress.history.append(row)
            progress.epoch += 1
            on_epoch(row)
            stopping = distributed.any_rank(interrupt.asked)
            if checkpoint and (stopping or distributed.any_rank(time.monotonic() - saved > CHECKPOINT_EVERY_S)):
                save_checkpoint(checkpoint, progress, model, optimizer, order)
                saved = time.monotonic()
    if progress.best_epoch < 0:
        raise HistError("training diverged: no epoch had a finite validation error; try a lower --lr")
    if not progress.finished(config.epochs, config.patience):
        model.load_trained_state(progress.best)
        raise KeyboardInterrupt
    if tested == "best":
        model.load_trained_state(progress.best)
    return progress
