"""A GPU that computes nothing: tensors have shapes, types and a device, but no values.

On it an error is: the value of a tensor (`.item()`, a branch, a shape that depends on values), which makes the CPU wait
for the GPU; a tensor made of Python numbers on the device, which is a copy that waits too; tensors of the GPU and the
CPU in one operation. So the code of a step can be checked for these where there is no GPU.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "fakegpu"


def start_fake_gpu() -> torch.device:
    """Make the device known; torch can do that once in a process, for good."""
    _setup_privateuseone_for_python_backend(NAME)
    torch.fakegpu.get_amp_supported_dtype = lambda: [torch.bfloat16]  # type: ignore[attr-defined]
    autocast = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    autocast.fallback(torch.library.fallthrough_kernel)
    start_fake_gpu.keep = autocast  # type: ignore[attr-defined]
    return torch.device(NAME, 0)


@contextmanager
def fake_tensors() -> Iterator[None]:
    """All tensors made here are fake, those of the CPU too."""
    with FakeTensorMode():
        yield


def to_fake_gpu(module: nn.Module) -> None:
    """Move a fake module to the fake GPU; `Module.to` cannot, as fake tensors cannot be swapped."""
    device = torch.device(NAME, 0)
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                there = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                part._parameters[name] = nn.Parameter(there, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


@contextmanager
def counted_values() -> Iterator[list[str]]:
    """Values of the fake GPU may be read, which is counted; all are 1."""
    read: list[str] = []
    own_item = torch.Tensor.item

    def item(tensor: torch.Tensor) -> float:
        if tensor.device.type != NAME:
            return own_item(tensor)
        read.append("item")
        return 1.0

    def tolist(tensor: torch.Tensor) -> list[float]:
        read.append("tolist")
        return [1.0] * len(tensor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "item", item)
        patch.setattr(FakeTensor, "tolist", tolist)
        yield read


def run_checks(_: int, checks: dict[str, Callable[[torch.device], None]], results: Path) -> None:
    """Run checks in a process of their own; results are the tracebacks of those that fail, "" for others."""
    torch.set_num_threads(1)
    device = start_fake_gpu()
    found = {}
    for name, check in checks.items():
        try:
            with fake_tensors():
                check(device)
            found[name] = ""
        except BaseException:
            found[name] = traceback.format_exc()
    results.write_text(json.dumps(found))
