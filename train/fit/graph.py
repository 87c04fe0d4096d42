"""Training steps recorded once as a CUDA graph and replayed: one launch a step instead of hundreds.

A step of a small model consists of hundreds of short kernels. A GPU ends each of them before the CPU has launched the
next one, so that launching decides the time. A graph holds all kernels of a step with their addresses. What changes
from step to step is written into memory that stays where it is: the rows of the batch, weights, moments, logged values.
Dropout draws from the device's own generator, which a graph moves on as ordinary steps do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from hist_cache.errors import one_line
from train import distributed
from train.data import SpotData
from train.fit.adamw import AdamW
from train.fit.batches import read_batch
from train.fit.step import step
from train.models.base import Log, Model

log = logging.getLogger(__name__)

ORDINARY_STEPS = 3
"""Steps before one is recorded, in which libraries set up and the optimizer makes its moments."""


class Recorder(Protocol):
    """What can record work on a device; tests have another one than CUDA's."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run work as it is, where it will be recorded."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record work without computing it; returns what computes it, as often as it is called."""


class CudaRecorder:
    """Records a CUDA graph on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)

    def warm_up(self, work: Callable[[], None]) -> None:
        """See `Recorder.warm_up`."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder.record`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


class RecordedStep:
    """A step on the rows of a batch that is recorded after a few ordinary ones, and replayed from then on.

    All steps count: those before the recording train as well. Where nothing can be recorded, a warning says so and
    all steps are ordinary ones.

    Args:
        model: To train.
        optimizer: Of `make_optimizer`.
        data: On cached embeddings.
        batch_size: Rows of every batch.
        clip_norm: See `step`.
        recorder: Of the device.
    """

    def __init__(
        self,
        model: Model,
        optimizer: AdamW,
        data: SpotData,
        batch_size: int,
        clip_norm: float,
        recorder: Recorder | None = None,
    ) -> None:
        self._model, self._optimizer, self._data, self._clip_norm = model, optimizer, data, clip_norm
        self._recorder = recorder or CudaRecorder(data.spot.device)
        self._rows = torch.zeros(batch_size, dtype=torch.int64, device=data.spot.device)
        self._log: Log = {}
        self._steps = 0
        self._replay: Callable[[], None] | None = None

    @property
    def recorded(self) -> bool:
        """Whether steps are replayed from now on."""
        return self._replay is not None

    def __call__(self, rows: Tensor) -> Log:
        """Train on these rows; see `step`. The next call overwrites the tensors that are returned."""
        self._rows.copy_(rows)
        if self._steps == ORDINARY_STEPS:
            self._record()
        if self._replay is not None:
            self._replay()
        elif self._steps < ORDINARY_STEPS:
            self._recorder.warm_up(self._step)
        else:
            self._step()
        self._steps += 1
        return self._log

    def _step(self) -> None:
        batch = read_batch(self._data, self._rows)
        self._log = step(self._model, self._data.inputs, self._optimizer, batch, None, self._clip_norm)

    def _record(self) -> None:
        try:
            self._replay = self._recorder.record(self._step)
        except RuntimeError as error:
            log.warning(f"steps are not recorded as a CUDA graph, but launched one by one ({one_line(error)})")


def why_not_recorded(data: SpotData, n_rows: int, batch_size: int) -> str | None:
    """Why steps on these data cannot be recorded; None where they can.

    Args:
        data: All spots.
        n_rows: Train spots.
        batch_size: Spots a step.
    """
    if data.spot.device.type != "cuda":
        return "the device is no GPU of NVIDIA"
    if data.inputs.encoder is not None:
        return "an encoder is trained too"
    if distributed.world_size() > 1:
        return "several processes share a batch"
    return "there are fewer spots than a batch has" if n_rows < batch_size else None
