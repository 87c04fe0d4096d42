"""The device that a command takes, and one that is not there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hist_cache.devices import choose_device, device_name
from hist_cache.errors import InputError


def has_gpus(count: int, patch: pytest.MonkeyPatch) -> list[torch.device]:
    """Have torch say that there are so many GPUs; returns those that it is set to."""
    used: list[torch.device] = []
    patch.setattr("torch.cuda.is_available", lambda: count > 0)
    patch.setattr("torch.cuda.device_count", lambda: count)
    patch.setattr("torch.cuda.set_device", used.append)
    patch.setattr("torch.cuda.get_device_name", lambda device: f"GPU {device.index}")
    patch.setattr("torch.version", SimpleNamespace(cuda="12.4"))
    return used


def test_what_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    used = has_gpus(2, monkeypatch)
    assert choose_device() == torch.device("cuda")
    assert choose_device("cuda") == torch.device("cuda")
    assert used == []
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert used == [torch.device("cuda", 1)], "also for what names no device"
    assert choose_device("cpu") == torch.device("cpu")
    assert [device_name(torch.device(d)) for d in ("cuda:1", "cpu")] == ["GPU 1", "the CPU"]


def test_without_a_gpu_the_cpu_is_taken_aloud_and_only_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpus(0, monkeypatch)
    assert choose_device("auto") == torch.device("cpu")
    assert device_name(torch.device("cpu")) == "the CPU (no GPU found)"
    with pytest.raises(InputError, match=r"--device cuda:0: no GPU \(torch finds none here\); give --device cpu"):
        choose_device("cuda:0")
    monkeypatch.setattr("torch.version", SimpleNamespace(cuda=None))
    with pytest.raises(InputError, match="is built without CUDA"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("cuda:2", "--device cuda:2: no such GPU; there are cuda:0, cuda:1"),
        ("gpu", "--device gpu: one of auto, cpu, cuda, cuda:0"),
        ("cuda:x", "--device cuda:x: one of auto, cpu"),
    ],
)
def test_another_one_is_refused(asked: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpus(2, monkeypatch)
    with pytest.raises(InputError) as error:
        choose_device(asked)
    assert str(error.value).startswith(says)
