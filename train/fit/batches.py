"""Where a batch is made: rows of the data become embeddings and expression, read ahead where they are on the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from hist_cache.devices import use_device
from train.data import Batch, Inputs, SpotData, SpotNiche

AHEAD = 2  # batches read while one is used
ENCODE_BATCH = 128  # spots that an encoder takes at once without gradients


def read_batch(data: SpotData, rows: Tensor) -> Batch:
    """The batch of these rows; images are the inputs as they are read, before any encoder."""
    return make_batch(data, rows, data.inputs.read(rows))


def make_batch(data: SpotData, rows: Tensor, images: SpotNiche) -> Batch:
    """The batch of these rows, from images that were read or encoded before."""
    if data.targets is None:
        expression = data.expression[rows]
        return Batch(images.spot, images.niche, rows, expression, data.niche_expression[rows], expression)
    learnt = (data.targets.expression, data.targets.niche_expression, data.targets.target)
    return Batch(images.spot, images.niche, rows, *(values[rows] for values in learnt))


def read_batches(data: SpotData, chunks: Sequence[Tensor], augment: bool = False) -> Iterator[Batch]:
    """The batches of these chunks of rows, in order, each read as `read_batch` does."""
    for rows, images in zip(chunks, prefetch(data.inputs, chunks, augment), strict=True):
        yield make_batch(data, rows, images)


def prefetch(inputs: Inputs, chunks: Iterable[Tensor], augment: bool = False) -> Iterator[SpotNiche]:
    """The inputs of each chunk of rows, in order; the next chunks are read by a thread while one is used.

    A reading error is raised when its chunk is due. If the iterator is closed early, pending reads are cancelled.

    Args:
        inputs: Where they are read.
        chunks: Rows `(n,)` of each chunk.
        augment: Turn and mirror each crop at random, drawn from torch's random state as it is when the first is read.
    """
    # A generator of its own: the thread would share torch's with dropout, in an order that changes from run to run.
    turns = torch.Generator().manual_seed(int(torch.randint(2**62, ()))) if augment else None
    if inputs.resident:
        for rows in chunks:
            yield inputs.read(rows, turns)
        return
    # Rows come from the GPU before it has work: later, to copy them would be to wait for all steps that were queued.
    chunks = [rows.cpu() for rows in chunks]
    ahead: deque[Future[SpotNiche]] = deque()
    thread = ThreadPoolExecutor(1, "inputs", initializer=use_device, initargs=(inputs.device,))
    try:
        for rows in chunks:
            ahead.append(thread.submit(inputs.read, rows, turns))
            if len(ahead) > AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)


def encode_pair(inputs: Inputs, images: SpotNiche) -> SpotNiche:
    """Embeddings `(B, D)` of both crops, in one pass of the encoder; cached embeddings stay as they are."""
    if inputs.encoder is None:
        return images
    spot, niche = inputs.encode(torch.cat([images.spot, images.niche])).chunk(2)
    return SpotNiche(spot, niche)


@torch.no_grad()
def encode_rows(data: SpotData, rows: Tensor, micro_batch: int | None = None) -> SpotNiche:
    """Embeddings `(n, D)` of `rows`: the cached ones, or those of the encoder that is fine-tuned, as it stands.

    Args:
        data: All spots.
        rows: `(n,)`.
        micro_batch: Spots that the encoder takes at once.
    """
    inputs = data.inputs
    if inputs.encoder is None:
        return inputs.read(rows)
    inputs.encoder.eval()
    parts = [encode_pair(inputs, inputs.read(part)) for part in rows.split(micro_batch or ENCODE_BATCH)]
    return SpotNiche(torch.cat([part.spot for part in parts]), torch.cat([part.niche for part in parts]))
