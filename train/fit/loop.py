"""Training: epochs over indices, early stopping on the validation slides, checkpoints; one synchronisation an epoch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from hist_cache.errors import HistError
from hist_cache.stopping import GracefulStop
from hist_cache.values import SelectBy
from train import distributed
from train.data import Images, SpotData, SpotNiche
from train.fit.adamw import AdamW
from train.fit.allocation import keep_freed_memory
from train.fit.average import WeightAverage
from train.fit.batches import encode_rows, make_batch, read_batches
from train.fit.checkpoints import Checkpoint, Progress, load_trained_state, trained_state
from train.fit.config import MAX_GRADIENT_NORM, EncodingConfig, FitConfig, Tested
from train.fit.graph import RecordedStep, why_not_recorded
from train.fit.step import loss_of, make_optimizer, step, trained_parameters
from train.models.base import Log, Model
from train.selection import SLIDE_SCORES

log = logging.getLogger(__name__)

PREDICT_BATCH = 4096
CHECKPOINT_EVERY_S = 60.0
LOWER_LR = "try a lower --lr or --weight-decay"


def train_epoch(
    model: Model,
    optimizer: AdamW,
    data: SpotData,
    rows: Tensor,
    batch_size: int,
    order: torch.Generator,
    encoding: EncodingConfig | None = None,
    clip_norm: float = MAX_GRADIENT_NORM,
    recorded: RecordedStep | None = None,
    average: WeightAverage | None = None,
) -> dict[str, float]:
    """Train on all `rows` once, in batches that the model draws (`Model.batches`).

    `recorded` takes the place of the ordinary step, and `average` takes in the weights after each.

    Returns:
        The mean of every logged value over the steps; `skipped` as a count.
    """
    encoding = encoding or EncodingConfig()
    _set_mode(model, data, training=True)
    totals: dict[str, Tensor] = {}
    chunks = [distributed.equal_shard(part) for part in model.batches(rows, batch_size, order)]
    logged: Iterable[Log]
    if recorded is not None:
        logged = map(recorded, chunks)
    else:
        batches = read_batches(data, chunks, encoding.augment)
        logged = (step(model, data.inputs, optimizer, b, encoding.micro_batch, clip_norm) for b in batches)
    for values in logged:  # a recorded step writes them into the same tensors each time
        totals = {k: totals[k] + v if totals else v.clone() for k, v in values.items()}
        if average is not None:
            average.update()
    names = list(totals)
    # The epoch's one synchronisation; each process has its own spots' MSE.
    sums = distributed.all_reduce_sum(torch.stack([totals[k].float() for k in names]))
    means = (sums / distributed.world_size()).tolist()
    return {k: v if k == "skipped" else v / len(chunks) for k, v in zip(names, means, strict=True)}


def _set_mode(model: Model, data: SpotData, training: bool) -> None:
    """Put the model, and the encoder that is fine-tuned with it, into training or evaluation mode."""
    model.train(training)
    if data.inputs.encoder is not None:
        data.inputs.encoder.train(training)


@torch.no_grad()
def predict_embedded(model: Model, images: SpotNiche, rows: Tensor, quickly: bool = False) -> Tensor:
    """Predictions `(n, G)` float32 of rows `(n,)` from their embeddings `(n, D)`; quickly to choose an epoch."""
    model.eval()
    of_model = model.predict_quickly if quickly else model.predict
    chunks = zip(*(level.split(PREDICT_BATCH) for level in (*images, rows)), strict=True)
    with model.autocast(images.spot.device):
        return torch.cat([of_model(Images(*chunk)).float() for chunk in chunks])


def predict(
    model: Model, data: SpotData, rows: Tensor, micro_batch: int | None = None, quickly: bool = False
) -> Tensor:
    """Predicted expression `(n, G)` of `rows` `(n,)`; only their images are read."""
    _set_mode(model, data, training=False)
    return add_offset(data, rows, predict_embedded(model, encode_rows(data, rows, micro_batch), rows, quickly))


def add_offset(data: SpotData, rows: Tensor, output: Tensor) -> Tensor:
    """Expression `(n, G)` of `rows` from a model's output for them: with what its targets were less than expression."""
    return output if data.targets is None else output + data.targets.offset[rows]


def validation_scores(
    model: Model, data: SpotData, rows: Tensor, rule: SelectBy, micro_batch: int | None = None
) -> dict[str, float]:
    """`val_mse` over all spots and genes of `rows`, and what else epochs are selected by (`val_pcc`).

    Each process predicts its share of the spots.
    """
    own = distributed.shard(rows)
    predicted = predict(model, data, own, micro_batch, quickly=True) if len(own) else data.expression[own]
    error = predicted - data.expression[own] if len(own) else data.expression[own]
    total = distributed.all_reduce_sum(error.double().square().sum())
    scores = {"val_mse": total.item() / (len(rows) * data.expression.shape[1])}
    if rule in SLIDE_SCORES:
        everything = predicted.new_zeros(len(rows), predicted.shape[1])
        everything[distributed.rank() :: distributed.world_size()] = predicted
        distributed.all_reduce_sum(everything)
        scores[f"val_{rule}"] = SLIDE_SCORES[rule](everything, data.expression[rows], data.slide[rows]).item()
    return scores


@torch.no_grad()
def validation_loss(
    model: Model, data: SpotData, rows: Tensor, batch_size: int, micro_batch: int | None = None
) -> float:
    """The whole loss over `rows`, mean over spots.

    Contrast depends on the other spots of a batch. So the spots are mixed, in an order that is always the same, and
    divided into equal batches of at least `batch_size`, or one where there are fewer.
    """
    _set_mode(model, data, training=False)
    mixed = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).to(rows.device)]
    total, count = torch.zeros((), device=rows.device), 0
    for part in mixed.tensor_split(max(1, len(rows) // batch_size)):
        own = distributed.equal_shard(part)
        n_rows = len(own) * distributed.world_size()
        loss, _ = loss_of(model, make_batch(data, own, encode_rows(data, own, micro_batch)))
        total, count = total + loss * n_rows, count + n_rows
    return distributed.all_reduce_sum(total).item() / max(count, 1) / distributed.world_size()


def record_steps(model: Model, optimizer: AdamW, data: SpotData, n_rows: int, config: FitConfig) -> RecordedStep | None:
    """What replays recorded steps; None, with a warning that says why, where these cannot be recorded."""
    if reason := why_not_recorded(data, n_rows, config.batch_size):
        log.warning(f"steps are not recorded as a CUDA graph, but launched one by one: {reason}")
        return None
    return RecordedStep(model, optimizer, data, config.batch_size, config.clip_norm)


def fit(
    model: Model,
    data: SpotData,
    train: Tensor,
    val: Tensor,
    config: FitConfig,
    checkpoint: Checkpoint | None,
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
    tested: Tested = "best",
    encoding: EncodingConfig | None = None,
    record: bool = False,
    followed: bool = False,
) -> Progress:
    """Train for `epochs`, or until the validation score of `select_by` has not improved for `patience` of them.

    Interrupted, it leaves a checkpoint, gives the model the best weights so far and raises KeyboardInterrupt.

    Args:
        model: To train; it is left with the best weights, or the last.
        data: All spots.
        train: Rows `(n,)` of the train spots.
        val: Rows `(m,)` of the validation spots.
        config: Of the loop.
        checkpoint: To go on from if there is one, with the same result as if it had never stopped. None keeps none.
        on_epoch: Called with each row of the history, while the model has the weights that were validated.
        tested: Which weights are left: of the best epoch, or of the last.
        encoding: How an encoder that is fine-tuned is fed.
        record: Record a step as a CUDA graph and replay it, where that can be done.
        followed: Whether another training follows. Then a stop that was asked for in the last epoch is raised, too.

    Raises:
        KeyboardInterrupt: The user asked to stop.
        HistError: No epoch had a finite validation error, or the checkpoint cannot be used.
    """
    inputs, micro_batch = data.inputs, encoding.micro_batch if encoding else None
    keep_freed_memory()
    optimizer = make_optimizer(model, inputs, config)
    order = torch.Generator().manual_seed(config.seed)
    average = WeightAverage(trained_parameters(model, inputs), config.ema)
    stopped = checkpoint.load(model, inputs, optimizer, order, average) if checkpoint else None
    progress = stopped or Progress()
    recorded = record_steps(model, optimizer, data, len(train), config) if record else None
    patience = config.patience_in_epochs(max(1, len(train) // config.batch_size))
    saved = time.monotonic()
    with GracefulStop("stopping at the end of this epoch (once more to stop at once)") as stop:
        stopping = distributed.any_rank(bool(stop.requested))
        while not progress.finished(config.epochs, patience) and not stopping:
            started = time.monotonic()
            row = {"epoch": float(progress.epoch)} | train_epoch(
                *(model, optimizer, data, train, config.batch_size, order),
                *(encoding, config.clip_norm, recorded, average),
            )
            with average.in_place():
                row |= validation_scores(model, data, val, config.select_by, micro_batch)
                if config.select_by == "loss":
                    row["val_loss"] = validation_loss(model, data, val, config.batch_size, micro_batch)
                row["seconds"] = time.monotonic() - started
                if config.watched(row) < progress.best_watched:
                    progress.best_watched, progress.best_epoch = config.watched(row), progress.epoch
                    progress.best = {k: v.detach().clone() for k, v in trained_state(model, inputs).items()}
                progress.history.append(row)
                progress.epoch += 1
                on_epoch(row)
            stopping = distributed.any_rank(bool(stop.requested))
            if checkpoint and (stopping or distributed.any_rank(time.monotonic() - saved > CHECKPOINT_EVERY_S)):
                checkpoint.save(progress, model, inputs, optimizer, order, average)
                saved = time.monotonic()
    if progress.best_epoch < 0:
        raise HistError(f"training diverged: no epoch had a finite validation error; {LOWER_LR}")
    finished = progress.finished(config.epochs, patience)
    if checkpoint and checkpoint.kept and finished:
        checkpoint.save(progress, model, inputs, optimizer, order, average)
    if tested == "best" or not finished:
        load_trained_state(model, inputs, progress.best)
    else:
        average.apply()
    if not finished or (followed and distributed.any_rank(bool(stop.requested))):
        raise stop.interrupt()
    return progress
