"""Several processes on one batch (torchrun): each takes its share of the spots, and the loss is that of the whole."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=12)  # the others wait while rank 0 makes tokens, tests and draws


def init() -> torch.device | None:
    """Join the processes that torchrun started and return this one's device; None where there is one process only."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return None
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=PATIENCE, device_id=device)
        return device
    dist.init_process_group("gloo", timeout=PATIENCE)
    return torch.device("cpu")


def destroy() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Processes on one batch; 1 outside torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 for the one that writes files and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Wait for all."""
    if world_size() > 1:
        dist.barrier()


def shard(rows: Tensor) -> Tensor:
    """This process's rows of a batch."""
    return rows[rank() :: world_size()]


class _Gather(torch.autograd.Function):
    """All processes' rows, process after process. Each computes the same loss of them, so that the gradient of its own
    rows is whole; times the number of processes, as gradients are averaged over these afterwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        ctx.rows = len(x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        start = rank() * ctx.rows
        return world_size() * gradients[0][start : start + ctx.rows]


def all_gather(x: Tensor) -> Tensor:
    """`(B / n, d)` rows of each of n processes to `(B, d)`, with gradients; x itself where there is one process."""
    return _Gather.apply(x) if world_size() > 1 else x


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """The mean over processes, in place, as DDP would; in one message, so that steps of several backwards work too."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over processes."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def any_rank(flag: bool) -> bool:
    """Whether it is true in any process."""
    device = "cuda" if dist.is_initialized() and dist.get_backend() == "nccl" else "cpu"
    return bool(all_reduce_sum(torch.tensor(float(flag), device=device)).item()) if world_size() > 1 else flag


def all_gather_states(state: Tensor) -> list[Tensor]:
    """Every process's state, in the order of their numbers."""
    if world_size() == 1:
        return [state]
    states: list[Any] = [None] * world_size()
    dist.all_gather_object(states, state)
    return states
