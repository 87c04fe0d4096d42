"""A slide's crops through the encoder: tiles are decoded once, and crops cut, resized and encoded in batches.

On a GPU, a background thread prepares batches while the device encodes. On a CPU, both would use the same cores;
preparing and encoding in turns, each with all cores, is faster than at the same time.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from extract.clock import Clock
from extract.encoders.encoder import Encoder
from extract.slides.batches import CropBatch, CropTransform, in_background, to_device
from extract.slides.crops import Crops, TileStore, pieces, reading_order, spot_runs
from extract.slides.image import Image
from hist_cache.devices import choose_device, use_device
from hist_cache.errors import HistError
from hist_cache.values import Precision

log = logging.getLogger(__name__)

MAX_CHUNK_BYTES = 8 << 20  # pixels that a thread cuts and resizes at a time, so that they stay in the CPU's cache
MAX_BATCH_BYTES = 256 << 20  # pixels of a batch; large crops make smaller batches, which limits memory
MAX_IN_FLIGHT = 2  # batches that a GPU is given before the first must be done


@dataclass(frozen=True)
class Item:
    """One crop: number `row` of `crops`."""

    crops: Crops
    row: int


Prepared = tuple[list[Item], CropBatch]  # a batch, and which crops it consists of


class Pipeline:
    """An encoder on a device, ready for slides.

    Args:
        encoder: The encoder; its module is moved to the device.
        device: Where to encode.
        dtype: Type of the encoder's weights and inputs.
        batch_size: Largest number of crops in a batch; halved when the device runs out of memory.
        threads: Number of threads that decode tiles and cut crops.
    """

    def __init__(
        self, encoder: Encoder, device: torch.device, dtype: torch.dtype, batch_size: int, threads: int
    ) -> None:
        self.encoder, self.device, self.dtype, self.batch_size = encoder, device, dtype, batch_size
        self.transform = CropTransform(encoder, device, dtype)
        self._module = encoder.module.to(device=device, dtype=dtype)
        self._pool = ThreadPoolExecutor(threads, "pixels", initializer=start_thread, initargs=(device,))
        self.clock = Clock()

    @property
    def precision(self) -> Precision:
        """The precision that the encoder runs in."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    def embed(
        self,
        image: Image,
        coords: np.ndarray,
        crops: list[Crops],
        advance: Callable[[int], None] = lambda n: None,
    ) -> dict[str, np.ndarray]:
        """Encode crops of a slide.

        Args:
            image: The slide's image.
            coords: (N, 2) centres of the spots, level-0 px, x then y.
            crops: Crops to encode, (N,) of each name.
            advance: Called with the number of crops after each batch.

        Returns:
            Name of the crops -> (N, D) float16 embeddings.

        Raises:
            HistError: An embedding is not finite, or the device has no memory for a batch of one crop.
            SlideError: The image cannot be read.
        """
        out = {
            c.name: torch.empty((len(c.left), self.encoder.width), dtype=torch.float16, device=self.device)
            for c in crops
        }

        def store(name: str, rows: np.ndarray, features: Tensor) -> None:
            out[name][to_device(torch.from_numpy(rows), self.device)] = features.to(torch.float16)

        self.stream(image, coords, crops, store, advance)
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
        receive: Callable[[str, np.ndarray, Tensor], None],
        advance: Callable[[int], None] = lambda n: None,
    ) -> None:
        """Encode crops of a slide and hand on the result batch by batch, so that memory stays small.

        Args:
            image: The slide's image.
            coords: (N, 2) centres of the spots, level-0 px, x then y.
            crops: Crops to encode, (N,) of each name.
            receive: Called with the name of the crops, their rows (k,), and what the encoder gives for them (k, ...),
                on the device and in the encoder's own type.
            advance: Called with the number of crops after each batch.

        Raises:
            HistError: The device has no memory for a batch of one crop.
            SlideError: The image cannot be read.
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
            for name, rows in crop_runs(items):
                receive(name, rows, features[start : start + len(rows)])
                start += len(rows)
            if self.device.type == "cuda":
                in_flight.append(torch.cuda.current_stream().record_event())
                if len(in_flight) > MAX_IN_FLIGHT:
                    in_flight.popleft().synchronize()
            self.clock.crops += len(items)
            started = self._tick(started)
            advance(len(items))

    def _tick(self, since: float) -> float:
        now = time.perf_counter()
        self.clock.seconds += now - since
        return now

    def _next(self, batches: Iterator[Prepared]) -> Prepared | None:
        started = time.perf_counter()
        batch = next(batches, None)
        self.clock.waiting += time.perf_counter() - started
        return batch

    def _batches(self, image: Image, coords: np.ndarray, crops: list[Crops]) -> Iterator[Prepared]:
        """Prepare batches of all crops of some spots at a time, so that tiles which they share are decoded once."""
        largest = max(c.side_px for c in crops)
        order = reading_order(coords, max(largest, image.tile_height))
        tiles = TileStore(image, crops, self._pool)
        spots_at_once = max(1, self.batch_size // len(crops))
        pending: list[Item] = []
        pending_bytes = 0
        for spots in spot_runs(order, spots_at_once):
            for item in (Item(c, int(row)) for c in crops for row in spots):
                pending.append(item)
                pending_bytes += 3 * item.crops.side_px**2
                if len(pending) == self.batch_size or pending_bytes > MAX_BATCH_BYTES:
                    yield self._prepare(image, pending, tiles)
                    pending, pending_bytes = [], 0
        if pending:
            yield self._prepare(image, pending, tiles)

    def _prepare(self, image: Image, items: list[Item], tiles: TileStore) -> Prepared:
        batch_plans = [pieces(image, int(i.crops.left[i.row]), int(i.crops.top[i.row]), i.crops.side_px) for i in items]
        tiles.load(batch_plans)
        batch = self.transform.new_batch(len(items))

        def fill(start: int, end: int) -> None:
            side = items[start].crops.side_px

            def cut(pixels: np.ndarray) -> None:
                for k in range(start, end):
                    tiles.cut(batch_plans[k], pixels[k - start])

            batch.put(start, (end - start, side, side, 3), cut)

        list(self._pool.map(fill, *zip(*chunk_bounds(items), strict=True)))
        tiles.release(batch_plans)
        return items, batch

    def encode(self, inputs: Tensor) -> Tensor:
        """Run the encoder on a batch, in parts of half the size whenever the device runs out of memory.

        Args:
            inputs: (n, 3, S, S) on the device.

        Returns:
            (n, D) embeddings, or whatever else the encoder gives.

        Raises:
            HistError: There is no memory for one crop.
        """
        with torch.inference_mode():
            while True:
                try:
                    parts = [self._module(part) for part in torch.split(inputs, self.batch_size)]
                    return parts[0] if len(parts) == 1 else torch.cat(parts)
                except torch.OutOfMemoryError:
                    if self.batch_size == 1:
                        raise HistError(
                            "out of memory with a batch of one crop; use a smaller encoder or a larger device"
                        ) from None
                self.batch_size = max(1, self.batch_size // 2)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                log.warning(f"out of memory: going on with batches of {self.batch_size}")

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def start_thread(device: torch.device) -> None:
    """Begin a thread that prepares whole crops: torch must not start further threads within it."""
    torch.set_num_threads(1)
    use_device(device)


def start_pipeline(
    encoder: Encoder, precision: Precision | None = None, device: torch.device | None = None
) -> Pipeline:
    """Put an encoder on a device, with a batch size that suits it.

    Args:
        encoder: The encoder; its module is moved to the device.
        precision: bf16 where the device computes it fast, by default.
        device: The GPU if there is one, by default.
    """
    device = device or choose_device()
    precision = precision or ("bf16" if has_fast_bf16(device) else "fp32")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        return Pipeline(encoder, device, dtype, 256, min(16, os.cpu_count() or 1))
    return Pipeline(encoder, device, dtype, 32, torch.get_num_threads())


def crops_per_second(pipeline: Pipeline) -> float:
    """Measure how many crops per second the encoder alone takes, on the faster of two batches."""
    inputs = pipeline.transform.empty(pipeline.batch_size).zero_()
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        pipeline.encode(inputs).cpu()
        seconds.append(time.perf_counter() - started)
    return pipeline.batch_size / min(seconds)


def has_fast_bf16(device: torch.device) -> bool:
    """Tell whether bf16 matrix products run in hardware: on Ampere or newer, or a CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def chunk_bounds(items: list[Item]) -> list[tuple[int, int]]:
    """Divide crops into runs of one size and at most MAX_CHUNK_BYTES; returns start and end of each."""
    bounds, start = [], 0
    for end in range(1, len(items) + 1):
        side = items[start].crops.side_px
        full = (end - start + 1) * side * side * 3 > MAX_CHUNK_BYTES
        if end == len(items) or full or items[end].crops is not items[start].crops:
            bounds.append((start, end))
            start = end
    return bounds


def crop_runs(items: list[Item]) -> Iterator[tuple[str, np.ndarray]]:
    """Divide crops into runs of the same name; yields the name and the rows (k,) of each."""
    for name, group in groupby(items, key=lambda item: item.crops.name):
        yield name, np.array([item.row for item in group])
