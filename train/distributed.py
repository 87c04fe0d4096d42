"""Several processes on one batch: each takes its rows, and the loss is that of the whole batch.

They are started by torchrun or as it starts them (`hist_cache.gang`).
Every function also works in a single process, where there is nothing to exchange.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_T = TypeVar("_T")

TIMEOUT = timedelta(hours=12)
"""Rank 0 alone makes tokens, tests and draws figures; the other processes wait for it that long."""


def init() -> torch.device | None:
    """Join the processes that the environment names, if it names several.

    Returns:
        The device of this process, or None if there is only one process.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return None
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=TIMEOUT, device_id=device)
        return device
    dist.init_process_group("gloo", timeout=TIMEOUT)
    return torch.device("cpu")


def destroy() -> None:
    """Leave the process group, if this process joined one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes that share a batch; 1 where there is no other."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process; process 0 is the one that writes files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Wait until all processes have reached this call."""
    if world_size() > 1:
        dist.barrier()


def shard(rows: Tensor) -> Tensor:
    """The rows of a batch that belong to this process: every n-th one for n processes."""
    return rows[rank() :: world_size()]


def equal_shard(rows: Tensor) -> Tensor:
    """The rows of a batch that belong to this process; the last few are left out, so that each has as many."""
    return shard(rows[: len(rows) - len(rows) % world_size()])


class _Gather(torch.autograd.Function):
    """Rows of all processes, in the order of their ranks.

    Every process computes the same loss of all rows, so the gradient of its own rows is already complete. It is
    multiplied by the number of processes, because `average_gradients` divides by it afterwards.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        ctx.n_rows = len(x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        start = rank() * ctx.n_rows
        return world_size() * gradients[0][start : start + ctx.n_rows]


def all_gather(x: Tensor) -> Tensor:
    """Collect the rows of all processes; gradients flow back to the rows of this one.

    Args:
        x: the rows of this process, `(B / n, D)`; every process gives the same number.

    Returns:
        The rows of all n processes in the order of their ranks, `(B, D)`; x itself if there is one process.
    """
    gathered: Tensor = _Gather.apply(x) if world_size() > 1 else x
    return gathered


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace the gradients of parameters by their mean over processes, as DistributedDataParallel would.

    All gradients travel in one message after the last backward pass, so a step may have several backward passes.
    """
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def all_reduce_sum(values: Tensor) -> Tensor:
    """The elementwise sum of a tensor over processes, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def any_rank(flag: bool) -> bool:
    """Whether the flag is true in at least one process."""
    device = "cuda" if dist.is_initialized() and dist.get_backend() == "nccl" else "cpu"
    return bool(all_reduce_sum(torch.tensor(float(flag), device=device)).item()) if world_size() > 1 else flag


def all_gather_states(state: _T) -> list[_T]:
    """The state (of a random generator, for example) of every process, in the order of their ranks."""
    if world_size() == 1:
        return [state]
    states: list[Any] = [None] * world_size()
    dist.all_gather_object(states, state)
    return states


def differing_rank(value: object) -> int | None:
    """The first process that has another value than process 0; None where all have the same. Waits for all."""
    values = all_gather_states(value)
    return next((i for i, other in enumerate(values) if other != values[0]), None)
