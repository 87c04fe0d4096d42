"""What tests on a GPU share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch

from train.data import SpotData

_T = TypeVar("_T", bound=Callable[..., Any])

PER_SPOT = ("spot", "niche", "expression", "niche_expression", "slide", "row", "complete")
CUDA = torch.device("cuda")


def on_cuda(test: _T) -> _T:
    """Mark a test that needs a GPU; it is skipped without one."""
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test))


def moved(data: SpotData, device: torch.device = CUDA) -> SpotData:
    """The same spots on a device."""
    return replace(data, **{name: getattr(data, name).to(device) for name in PER_SPOT})


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Operations that wait for the GPU are errors."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
