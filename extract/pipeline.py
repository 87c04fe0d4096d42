"""A slide's crops through the encoder: tiles are decoded once, crops cut, resized and encoded in batches.

On a GPU a background thread prepares batches while the device encodes. On a CPU both are the same cores: taking
turns, each with all of them, is faster than sharing.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from extract.encoders.encoder import Encoder
from extract.slides.batches import Batch, Inputs
from extract.slides.crops import Crops, TileStore, blocks, pieces, sweep_order
from extract.slides.readers import Image
from hist_cache.console import warn
from hist_cache.errors import HistError

CHUNK_BYTES = 8 << 20  # pixels cut and resized at a time by one thread: few enough to stay in its cache
BATCH_BYTES = 256 << 20  # pixels of a batch: large crops make smaller batches, so that memory stays bounded
QUEUED_BATCHES = 2
IN_FLIGHT = 2  # batches given to a GPU before the first is waited for


Precision = Literal["bf16", "fp32"]


@dataclass
class Clock:
    """What a run cost: crops encoded, seconds in all and seconds spent waiting for pixels."""

    crops: int = 0
    seconds: float = 0.0
    waiting: float = 0.0

    @property
    def waiting_share(self) -> float:
        return self.waiting / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Item:
    """Crop `row` of `crops`."""

    crops: Crops
    row: int


class Pipeline:
    """An encoder on a device, ready for slides. `batch_size` shrinks when the device runs out of memory."""

    def __init__(
        self, encoder: Encoder, device: torch.device, dtype: torch.dtype, batch_size: int, threads: int
    ) -> None:
        self.encoder, self.device, self.dtype, self.batch_size = encoder, device, dtype, batch_size
        self.inputs = Inputs(encoder, device, dtype)
        self._module = encoder.module.to(device=device, dtype=dtype)
        # Each thread does whole crops: torch must not start threads of its own within them.
        self._pool = ThreadPoolExecutor(threads, "pixels", initializer=torch.set_num_threads, initargs=(1,))
        self.clock = Clock()

    @property
    def precision(self) -> Precision:
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    def embed(
        self,
        image: Image,
        coords: np.ndarray,
        crops: list[Crops],
        advance: Callable[[int], None] = lambda n: None,
    ) -> dict[str, np.ndarray]:
        """Encode all `crops` of a slide; returns (N, D) float16 by their names. `advance(n)` hears of progress."""
        out = {
            c.name: torch.empty((len(c.left), self.encoder.width), dtype=torch.float16, device=self.device)
            for c in crops
        }

        def keep(name: str, rows: np.ndarray, features: Tensor) -> None:
            out[name][torch.from_numpy(rows).to(self.device)] = features.to(torch.float16)

        self.stream(image, coords, crops, keep, advance)
        started = time.perf_counter()
        result = {name: values.cpu().numpy() for name, values in out.items()}
        self._tick(started)
        for name, values in result.items():
            if not np.isfinite(values).all():
                raise HistError(f"the encoder gave non-finite {name} embeddings; try --precision fp32")
        return result

    def stream(
        self,
        image: Image,
        coords: np.ndarray,
        crops: list[Crops],
        keep: Callable[[str, np.ndarray, Tensor], None],
        advance: Callable[[int], None] = lambda n: None,
    ) -> None:
        """Encode all `crops` of a slide, handing what comes of them to `keep(name, rows (k,), features (k, ...))`.

        The features are on the device, in the encoder's own type, batch after batch; none are held here.
        """
        started = time.perf_counter()
        in_flight: deque[torch.cuda.Event] = deque()
        batches = self._batches(image, coords, crops)
        if self.device.type == "cuda":
            batches = in_background(batches)
        while (batch := self._next(batches)) is not None:
            items, inputs = batch
            features = self.encode(inputs.take())
            start = 0
            for name, rows in runs(items):
                keep(name, rows, features[start : start + len(rows)])
                start += len(rows)
            if self.device.type == "cuda":
                in_flight.append(torch.cuda.current_stream().record_event())
                if len(in_flight) > IN_FLIGHT:
                    in_flight.popleft().synchronize()
            self.clock.crops += len(items)
            started = self._tick(started)
            advance(len(items))

    def _tick(self, since: float) -> float:
        now = time.perf_counter()
        self.clock.seconds += now - since
        return now

    def _next(self, batches: Iterator[tuple[list[Item], Batch]]) -> tuple[list[Item], Batch] | None:
        started = time.perf_counter()
        batch = next(batches, None)
        self.clock.waiting += time.perf_counter() - started
        return batch

    def _batches(self, image: Image, coords: np.ndarray, crops: list[Crops]) -> Iterator[tuple[list[Item], Batch]]:
        """Batches in sweep order: all crops of a block of spots, so that their common tiles are decoded once."""
        largest = max(c.side_px for c in crops)
        order = sweep_order(coords, max(largest, image.tile_height))
        tiles = TileStore(image, crops, self._pool)
        per_block = max(1, self.batch_size // len(crops))
        pending: list[Item] = []
        held = 0
        for block in blocks(order, per_block):
            for item in (Item(c, int(row)) for c in crops for row in block):
                pending.append(item)
                held += 3 * item.crops.side_px**2
                if len(pending) == self.batch_size or held > BATCH_BYTES:
                    yield self._prepare(image, pending, tiles)
                    pending, held = [], 0
        if pending:
            yield self._prepare(image, pending, tiles)

    def _prepare(self, image: Image, items: list[Item], tiles: TileStore) -> tuple[list[Item], Batch]:
        batch_plans = [pieces(image, int(i.crops.left[i.row]), int(i.crops.top[i.row]), i.crops.side_px) for i in items]
        tiles.load(batch_plans)
        batch = self.inputs.new_batch(len(items))

        def fill(start: int, end: int) -> None:
            side = items[start].crops.side_px

            def cut(pixels: np.ndarray) -> None:
                for k in range(start, end):
                    tiles.cut(batch_plans[k], pixels[k - start])

            batch.put(start, (end - start, side, side, 3), cut)

        list(self._pool.map(fill, *zip(*chunks(items), strict=True)))
        tiles.release(batch_plans)
        return items, batch

    def encode(self, inputs: Tensor) -> Tensor:
        """(n, 3, S, S) -> (n, D), or what the encoder gives; on out of memory halves the batch and goes on."""
        with torch.inference_mode():
            while True:
                try:
                    parts = [self._module(part) for part in inputs.split(self.batch_size)]
                    return parts[0] if len(parts) == 1 else torch.cat(parts)
                except torch.OutOfMemoryError:
                    if self.batch_size == 1:
                        raise HistError(
                            "out of memory with a batch of one crop; use a smaller encoder or a larger device"
                        ) from None
                self.batch_size = max(1, self.batch_size // 2)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                warn(f"out of memory: going on with batches of {self.batch_size}")

    def close(self) -> None:
        self._pool.shutdown()


def start_pipeline(
    encoder: Encoder, precision: Precision | None = None, device: torch.device | None = None
) -> Pipeline:
    """A pipeline on the best device there is, in bf16 where that is fast, with a batch that fits the device."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = precision or ("bf16" if has_fast_bf16(device) else "fp32")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        return Pipeline(encoder, device, dtype, 256, min(16, os.cpu_count() or 1))
    return Pipeline(encoder, device, dtype, 32, torch.get_num_threads())


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run in hardware: Ampere or newer, or a CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def chunks(items: list[Item]) -> list[tuple[int, int]]:
    """Runs of crops of one size, of at most CHUNK_BYTES."""
    bounds, start = [], 0
    for end in range(1, len(items) + 1):
        side = items[start].crops.side_px
        full = (end - start + 1) * side * side * 3 > CHUNK_BYTES
        if end == len(items) or full or items[end].crops is not items[start].crops:
            bounds.append((start, end))
            start = end
    return bounds


def runs(items: list[Item]) -> Iterator[tuple[str, np.ndarray]]:
    """Consecutive items of the same crops: their name and rows."""
    for name, group in groupby(items, key=lambda item: item.crops.name):
        yield name, np.array([item.row for item in group])


def in_background(batches: Iterator[tuple[list[Item], Batch]]) -> Iterator[tuple[list[Item], Batch]]:
    """The same batches, made ahead by a thread; its error is raised here, and it ends when the consumer does."""
    ready: queue.Queue = queue.Queue(QUEUED_BATCHES)
    stop = threading.Event()

    def offer(thing: object) -> None:
        while not stop.is_set():
            try:
                return ready.put(thing, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                offer(batch)
                if stop.is_set():
                    return
            offer(None)
        except BaseException as error:
            offer(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while (thing := ready.get()) is not None:
            if isinstance(thing, BaseException):
                raise thing
            yield thing
    finally:
        stop.set()
        thread.join()
