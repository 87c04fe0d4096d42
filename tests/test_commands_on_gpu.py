"""All commands on a GPU, on tiny slides: extraction, a grid, fine-tuning both ways, a search, torchrun's variables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import extract.cli
import sweeps.cli
import train.cli
import train.fit.loop
from tests.gpu import on_cuda
from tests.small import TRAIN, Run, make_cache, trained

EMPTY = 2**30  # bytes; what libraries keep, such as the workspaces of cuBLAS, is less


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny slides, extracted on the GPU."""
    return make_cache(tmp_path_factory.mktemp("gpu"))


@pytest.fixture(autouse=True)
def no_gpu_memory_is_left() -> Iterator[None]:
    """What a command took is given back when it ends."""
    yield
    if torch.cuda.is_available():
        assert torch.cuda.memory_allocated() < EMPTY


def cost(fold: Path) -> dict[str, object]:
    return json.loads((fold / "cost.json").read_text())


@on_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_grid_is_the_same_twice(cache: Path, run_command: Run, tmp_path: Path, precision: str) -> None:
    argv = ["--cache", cache, *TRAIN[:-2], "--ablation", "full,clip", "--folds", 2, "--model", "hist,ridge,knn"]
    torch.empty(2**30, dtype=torch.uint8, device="cuda")  # the peak of what ran before is not that of a fold
    for runs in ("a", "b"):
        code, text = run_command(train.cli.main, *argv, "--runs", tmp_path / runs, "--precision", precision)
        assert code == 0, text
        assert f"on {torch.cuda.get_device_name()}, 1 at once" in text
    assert len(trained(tmp_path / "a")) == 3 * 2 * 4
    assert trained(tmp_path / "a") == trained(tmp_path / "b")
    for fold in tmp_path.glob("a/tiny/full-*/fold*"):
        assert cost(fold)["device"] == "cuda"
        assert 0 < float(str(cost(fold)["peak_memory_gb"])) < 1


@on_cuda
def test_two_processes_share_a_gpu(cache: Path, run_command: Run, tmp_path: Path) -> None:
    argv = ["--cache", cache, *TRAIN[:-2], "--folds", 2, "--precision", "fp32"]
    for jobs in (1, 2):
        code, text = run_command(train.cli.main, *argv, "--jobs", jobs, "--runs", tmp_path / str(jobs))
        assert code == 0, text
    assert trained(tmp_path / "1") == trained(tmp_path / "2")


@on_cuda
@pytest.mark.parametrize("start", [[], ["--no-token-cache", "--augment"]], ids=["tokens", "crops"])
def test_fine_tuning(cache: Path, run_command: Run, tmp_path: Path, start: list[object]) -> None:
    argv = ["--cache", cache, *TRAIN, "--fold", 0, "--runs", tmp_path, "--finetune-lora", "--lora-layers", 2, *start]
    code, text = run_command(train.cli.main, *argv, "--micro-batch", 5)
    assert code == 0, text
    assert "on the GPU" in text, "so few inputs are kept there"
    [adapter] = tmp_path.glob("tiny/*/fold0/adapter/adapter_model.safetensors")
    assert adapter.stat().st_size > 0


@on_cuda
def test_a_fold_without_memory_leaves_it_to_the_next(
    cache: Path, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = train.fit.loop.train_epoch
    failed: list[object] = []

    def allocate(model: torch.nn.Module, *args: object, **more: object) -> dict[str, float]:
        if not failed:
            failed.append(0)
            held = [torch.empty(2**31, dtype=torch.uint8, device="cuda") for _ in range(1000)]
            assert held
        assert torch.cuda.memory_allocated() < EMPTY
        return real(model, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(train.fit.loop, "train_epoch", allocate)
    code, text = run_command(train.cli.main, "--cache", cache, *TRAIN, "--folds", 2, "--runs", tmp_path)
    assert code == 1, text
    assert "out of memory; give a smaller model (such as --width) or --batch-size" in text
    assert len(list(tmp_path.glob("tiny/*/fold*/metrics.json"))) == 1


@on_cuda
def test_a_model_larger_than_the_gpu_is_refused(cache: Path, run_command: Run, tmp_path: Path) -> None:
    code, text = run_command(train.cli.main, "--cache", cache, *TRAIN, "--width", 100_000, "--runs", tmp_path)
    assert code == 1, text
    assert "give a smaller model (such as --width)" in text


@on_cuda
def test_a_search(cache: Path, run_command: Run, tmp_path: Path) -> None:
    argv = ["--cache", cache, *TRAIN[:-2], "--folds", 1, "--trials", 2, "--runs", tmp_path]
    code, text = run_command(sweeps.cli.main, *argv)
    assert code == 0, text
    assert "on the GPU, 1 at once" in text


@on_cuda
def test_a_cache_of_the_cpu_serves_on_the_gpu(
    cache: Path, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers within rounding, and extraction finds nothing left to do in it."""
    argv = ["--cache", cache, *TRAIN, "--fold", 0, "--dropout", 0, "--precision", "fp32"]
    code, text = run_command(train.cli.main, *argv, "--runs", tmp_path / "gpu")
    assert code == 0, text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, text = run_command(train.cli.main, *argv, "--runs", tmp_path / "cpu")
    assert code == 0, text
    errors = []
    for where in ("gpu", "cpu"):
        [fold] = tmp_path.glob(f"{where}/tiny/*/fold0")
        errors.append(json.loads((fold / "metrics.json").read_text())["pooled"]["mse"])
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)
    root = cache.parent / "hest"
    more = ("--data-root", root, "--dataset", "tiny", "--ids", "TINY1", "--cache", cache, "--precision", "fp32")
    code, text = run_command(
        extract.cli.main, *more, "--encoder", "timm:test_vit", "--random-weights", "--precision", "fp32"
    )
    assert code == 0, text
    assert "0 to extract" in text
