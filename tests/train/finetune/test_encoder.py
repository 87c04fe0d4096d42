"""hist-train --finetune-lora as a whole, on tiny slides and a tiny vision transformer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import extract.cli
from hist_cache.runs import Fold
from tests.commands import REPOSITORY, Command
from tests.conftest import HIST_TRAIN, TALKATIVE, TINY_ENCODER, epochs_run, wait_for_epochs, write_slide
from train.cli import main
from train.experiments.outputs import load_model

Run = Callable[..., tuple[int, str]]
SMALL = ("--width", 8, "--depth", 1, "--epochs", 2, "--batch-size", 16, "--n-genes", 20, "--lr", 1e-3)
LOSO = ("--split", "loso", "--fold", 0)
TUNED = ("--finetune-lora", "--lora-layers", 2, "--precision", "fp32")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tiny slides, encoded in float32, with tokens at block 4."""
    where = tmp_path_factory.mktemp("tuned")
    for i in range(1, 4):
        write_slide(where / "hest", f"TINY{i}", seed=i, metadata={"patient": f"Patient {i}"})
    code = extract.cli.main(
        ["--ids", "TINY1-3", "--dataset", "tiny", "--data-root", str(where / "hest"), "--cache",
         str(where / "cache"), "--encoder", TINY_ENCODER, "--random-weights", "--precision", "fp32", "--tokens-at", "4"]
    )  # fmt: skip
    assert code == 0
    return where / "cache"


def fold_of(runs: Path, pattern: str = "full-*") -> Fold:
    [fold] = runs.glob(f"*/{pattern}/fold0")
    return Fold(fold)


def tune(run_command: Run, cache: Path, runs: Path, *more: object) -> Fold:
    code, text = run_command(main, "--cache", cache, "--runs", runs, *LOSO, *SMALL, *TUNED, *more)
    assert code == 0, text
    return fold_of(runs)


@pytest.mark.slow
def test_a_tuned_run_is_whole_and_its_adapter_makes_a_cache(cache: Path, run_command: Run, tmp_path: Path) -> None:
    import peft

    from extract.encoders.registry import load_encoder

    code, text = run_command(main, "--cache", cache, *LOSO, *SMALL, *TUNED)
    assert code == 0, text
    assert "LoRA: rank 4, alpha 8, dropout 0.1 on attn.qkv and attn.proj of blocks 4-5" in text
    fold = fold_of(tmp_path / "runs", "full-lora2-*")
    assert fold.config["tuning"]["lora"]["layers"] == 2
    assert fold.config["tuning"]["start"] == "tokens"
    module = peft.PeftModel.from_pretrained(load_encoder(TINY_ENCODER, None, True).module, fold.folder / "adapter")
    trained = [p for name, p in module.named_parameters() if "lora_B" in name]
    assert len(trained) == 4
    assert all(p.abs().max() > 0 for p in trained)  # zero before training
    assert not any(key.startswith("encoder.") for key in load_file(fold.folder / "model.safetensors"))

    code, text = run_command(
        extract.cli.main, "--ids", "TINY1-3", "--dataset", "tiny", "--data-root", cache.parent / "hest",
        "--cache", "tuned", "--lora", fold.folder.parent, "--precision", "fp32",
    )  # fmt: skip
    assert code == 0, text
    [folder] = (tmp_path / "tuned/tiny").iterdir()
    code, text = run_command(main, "--cache", "tuned", "--encoder", folder.name, "--runs", "after", *LOSO, *SMALL)
    assert code == 0, text
    after = fold_of(tmp_path / "after")
    assert after.config["cache"]["lora"]
    # What was saved, embeddings of the adapter and the model on them, gives what was predicted while tuning.
    from hist_cache import open_cache
    from train.assembly import assemble, read_slides
    from train.fit.loop import predict

    slides = read_slides(open_cache(folder), [6])
    data = assemble(slides, 6, fold.panel, torch.device("cpu"))
    again = predict(load_model(fold.folder), data, data.rows(tuple(fold.config["split"]["test"])))
    np.testing.assert_allclose(again.numpy(), fold.predictions.X, rtol=2e-2, atol=2e-2)  # float16 both times
    code, text = run_command(main, "--cache", "tuned", "--encoder", folder.name, *LOSO, *SMALL, "--finetune-lora")
    assert code == 2
    assert "tuned already" in text


@pytest.mark.slow
def test_tokens_and_crops_train_alike(cache: Path, run_command: Run, tmp_path: Path) -> None:
    tokens = tune(run_command, cache, tmp_path / "tokens", "--lora-dropout", 0, "--dropout", 0)
    crops = tune(run_command, cache, tmp_path / "crops", "--lora-dropout", 0, "--dropout", 0, "--no-token-cache")
    columns = ["loss", "mse", "hca", "hea", "val_mse", "c", "radius_gene_spot"]
    np.testing.assert_allclose(tokens.history[columns], crops.history[columns], rtol=3e-3)


@pytest.mark.slow
def test_a_batch_in_parts_trains_alike(cache: Path, run_command: Run, tmp_path: Path) -> None:
    whole = tune(run_command, cache, tmp_path / "whole", "--lora-dropout", 0)
    parts = tune(run_command, cache, tmp_path / "parts", "--lora-dropout", 0, "--micro-batch", 5, "--grad-checkpoint")
    assert whole.folder.parent.name == parts.folder.parent.name  # not another experiment
    columns = ["loss", "mse", "hca", "hea", "val_mse", "gradient_norm"]
    np.testing.assert_allclose(whole.history[columns], parts.history[columns], rtol=1e-3)


@pytest.mark.long
def test_augmentation_is_another_run_with_other_numbers(cache: Path, run_command: Run, tmp_path: Path) -> None:
    plain = tune(run_command, cache, tmp_path / "plain", "--no-token-cache")
    turned = tune(run_command, cache, tmp_path / "turned", "--augment")
    again = tune(run_command, cache, tmp_path / "again", "--augment")
    assert turned.config["tuning"]["start"] == "crops"
    assert plain.metrics["pooled"] != turned.metrics["pooled"]
    assert turned.metrics == again.metrics


@pytest.mark.long
def test_no_layers_is_training_on_the_cache(cache: Path, run_command: Run, tmp_path: Path) -> None:
    argv = ("--cache", cache, *LOSO, *SMALL)
    assert run_command(main, *argv)[0] == 0
    code, text = run_command(main, *argv, "--finetune-lora", "--lora-layers", "0,2", "--precision", "fp32")
    assert code == 0, text
    assert "1 done before" in text
    assert len(list((tmp_path / "runs/tiny").glob("full-*"))) == 2


@pytest.mark.slow
def test_missing_tokens_are_made_and_tokens_before_serve_too(run_command: Run, cache: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(cache, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*.tokens4.h5"):
        path.unlink()
    argv = ("--cache", tmp_path / "copy", *LOSO, *SMALL, "--finetune-lora", "--precision", "fp32")
    code, text = run_command(main, *argv, "--lora-layers", 3)
    assert code == 0, text
    assert "tokens entering block 3" in text
    assert "on disk" in text
    code, text = run_command(main, *argv, "--lora-layers", 1)
    assert code == 0, text
    assert {p.name.split(".")[1] for p in (tmp_path / "copy").rglob("*.tokens*.h5")} == {"tokens3"}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--finetune-lora", "--lora-layers", 7], "--lora-layers 7: timm:test_vit has 6 blocks"),
        (["--lora-layers", 5], "--lora-layers is for fine-tuning the encoder: give --finetune-lora too"),
        (["--micro-batch", 5], "give --finetune-lora"),
        (["--finetune-lora", "--lora-rank", 0], "rank 0"),
        (["--finetune-lora", "--micro-batch", 0], "--micro-batch 0"),
        (["--finetune-lora", "--lora", "run"], "an encoder is fine-tuned once"),
        (["--lora", "run"], "--lora run: no run here"),
        (["--finetune-lora", "--no-token-cache", "--data-root", "nowhere"], "nowhere"),
        (["--finetune-lora", "--weights", "nowhere"], "--weights nowhere and --random-weights exclude each other"),
        (["--finetune-lora", "--data-root", "."], "not a HEST folder (no st/ and wsis/ in it)"),
        (["--finetune-lora", "--no-token-cache", "--data-root", "other"], "TINY1: other/st/TINY1.h5ad: no such file"),
        (["--table", 14], "--lora-layers 11: timm:test_vit has 6 blocks"),
    ],
)
def test_wrong_input_also_in_a_dry_run(
    cache: Path, run_command: Run, tmp_path: Path, more: list[object], says: str
) -> None:
    for folder in ("st", "wsis"):
        (tmp_path / "other" / folder).mkdir(parents=True)
    for dry_run in (["--dry-run"], []):
        code, text = run_command(main, "--cache", cache, *LOSO, *SMALL, *more, *dry_run)
        assert code in (1, 2), text
        assert says in text
        assert "Traceback" not in text


def test_an_encoder_that_is_no_vision_transformer(run_command: Run, cache: Path, tmp_path: Path) -> None:
    code, text = run_command(
        extract.cli.main, "--ids", "TINY1-3", "--dataset", "tiny", "--data-root", cache.parent / "hest",
        "--cache", "conv", "--encoder", "timm:test_convnext", "--random-weights",
    )  # fmt: skip
    assert code == 0, text
    code, text = run_command(main, "--cache", "conv", *LOSO, *SMALL, "--finetune-lora", "--lora-layers", 1)
    assert code == 2
    assert "not a timm VisionTransformer" in text


def test_out_of_memory_names_what_helps(
    cache: Path, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*args: object, **more: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("train.experiments.members.fit", fit)
    code, text = run_command(main, "--cache", cache, *LOSO, *SMALL, *TUNED)
    assert code == 1
    assert "--micro-batch N" in text
    assert "--grad-checkpoint" in text
    assert "Traceback" not in text


def test_table_14_is_the_depths_of_the_paper(cache: Path, run_command: Run, tmp_path: Path) -> None:
    argv = ("--cache", cache, "--table", 14, "--lora-layers", "0,1,2", *LOSO, *SMALL, "--precision", "fp32")
    code, text = run_command(main, *argv)
    assert code == 0, text
    assert "Table 14: Blocks adapted by LoRA" in text
    for layers in (0, 1, 2):
        assert f"full, LoRA {layers}" in text


def arguments(cache: Path, runs: Path, *more: object) -> list[object]:
    return ["--cache", cache, "--runs", runs, *LOSO, *SMALL, *TUNED, *more]


def start_and_wait(start_command: Callable[..., Command], *argv: object) -> None:
    process = start_command(HIST_TRAIN, *argv)
    text, _ = process.communicate()
    assert process.returncode == 0, text


@pytest.mark.slow
def test_a_stopped_run_ends_as_an_unbroken_one(
    cache: Path, start_command: Callable[..., Command], tmp_path: Path
) -> None:
    """Optimiser, epoch, random state (dropout in head and adapters) and early stopping go on."""
    more = ("--epochs", 5, "--patience", 5, "--precision", "bf16")
    start_and_wait(start_command, *arguments(cache, tmp_path / "one", *more))
    process = start_command(TALKATIVE, *arguments(cache, tmp_path / "two", *more))
    wait_for_epochs(process)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    [stopped] = tmp_path.glob("two/*/*/fold0")
    assert (stopped / "adapter/adapter_model.safetensors").exists()  # the best so far
    done = epochs_run(stopped)
    assert 0 < done < 5
    start_and_wait(start_command, *arguments(cache, tmp_path / "two", *more, "--resume"))
    one, two = (fold_of(tmp_path / which) for which in ("one", "two"))
    assert one.metrics == two.metrics
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()


@pytest.mark.long
def test_torchrun_and_jobs_give_what_one_process_gives(
    cache: Path, start_command: Callable[..., Command], run_command: Run, tmp_path: Path
) -> None:
    no_dropout = ("--dropout", 0, "--lora-dropout", 0)
    start_and_wait(start_command, *arguments(cache, tmp_path / "one", *no_dropout))
    script = tmp_path / "hist_train.py"
    script.write_text(HIST_TRAIN)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(script)]
    argv = [*torchrun, *map(str, arguments(cache, tmp_path / "two", *no_dropout, "--jobs", 2))]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("LoRA: rank 4") == 1  # the first process alone speaks
    assert "on the CPU (no GPU found), 2 processes on each batch" in done.stdout
    one, two = (fold_of(tmp_path / which) for which in ("one", "two"))
    columns = ["loss", "mse", "hca", "hea", "val_mse", "gradient_norm", "c"]
    np.testing.assert_allclose(one.history[columns], two.history[columns], rtol=1e-4)
    assert one.metrics["pooled"] == pytest.approx(two.metrics["pooled"], rel=1e-3, abs=1e-4)
    assert_same(two, tune(run_command, cache, tmp_path / "jobs", *no_dropout, "--jobs", 2))


def assert_same(one: Fold, two: Fold) -> None:
    """The same losses of every epoch, weights and metrics, bit by bit."""
    assert one.history.drop(columns="seconds").equals(two.history.drop(columns="seconds"))
    assert one.metrics == two.metrics
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()


def mortal_command(folder: Path, deaths: int, epochs: int = 1) -> Path:
    """A hist-train with slow epochs and a checkpoint after each, whose second process dies some times.

    Args:
        folder: For the script.
        deaths: How many times.
        epochs: After how many epochs of its own.
    """
    folder.mkdir()
    (folder / "mortal.py").write_text(
        f"""import os, signal, sys, time
from pathlib import Path
import train.fit.loop as loop
loop.CHECKPOINT_EVERY_S = 0
here, train_epoch, run = Path(__file__).parent, loop.train_epoch, []
def mortal_epoch(*arguments):
    died = len(list(here.glob("died*")))
    if os.environ.get("RANK") == "1" and len(run) == {epochs} and died < {deaths}:
        (here / f"died{{died}}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if run:
        time.sleep(0.4)
    run.append(1)
    return train_epoch(*arguments)
loop.train_epoch = mortal_epoch
if __name__ == "__main__":
    from train.cli import main
    sys.exit(main())
"""
    )
    return folder / "mortal.py"


@pytest.mark.slow
def test_a_lost_process_costs_no_more_than_an_epoch(
    cache: Path, run_command: Run, start_command: Callable[..., Command], tmp_path: Path
) -> None:
    more = ("--epochs", 3, "--jobs", 2)
    script = mortal_command(tmp_path / "mortal", deaths=1)
    process = start_command(script.read_text(), *arguments(cache, tmp_path / "lost", *more), file=script)
    text, _ = process.communicate()
    assert process.returncode == 0, text
    assert text.count("process 2 of 2 on one batch died (killed by SIGKILL; out of memory?); all start again") == 1
    assert (tmp_path / "mortal/died0").exists()
    assert_same(fold_of(tmp_path / "lost"), tune(run_command, cache, tmp_path / "unbroken", *more))


@pytest.mark.long
def test_a_process_that_is_lost_again_and_again(
    cache: Path, start_command: Callable[..., Command], tmp_path: Path
) -> None:
    script = mortal_command(tmp_path / "mortal", deaths=9, epochs=0)
    process = start_command(script.read_text(), *arguments(cache, tmp_path / "runs", "--jobs", 2), file=script)
    text, _ = process.communicate()
    assert process.returncode == 1
    assert [line for line in text.splitlines() if line.startswith("error: ")] == [
        "error: process 2 of 2 on one batch died (killed by SIGKILL; out of memory?); given up after 3 restarts; the "
        "same command goes on from the last checkpoint"
    ]
    assert len(list((tmp_path / "mortal").glob("died*"))) == 4


@pytest.mark.slow
def test_two_stopped_processes_go_on_as_one(
    cache: Path, run_command: Run, start_command: Callable[..., Command], tmp_path: Path
) -> None:
    no_dropout = ("--epochs", 4, "--dropout", 0, "--lora-dropout", 0)
    script = mortal_command(tmp_path / "mortal", deaths=0)
    two = arguments(cache, tmp_path / "runs", *no_dropout, "--jobs", 2)
    process = start_command(script.read_text(), *two, file=script)
    while not list(tmp_path.glob("runs/*/*/fold0/checkpoint.pt")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate()
    assert process.returncode == 143, text
    assert text.count("stopping 2 processes") == 1
    [stopped] = tmp_path.glob("runs/*/*/fold0")
    assert (stopped / "adapter/adapter_model.safetensors").exists()
    assert 0 < epochs_run(stopped) < 4
    code, text = run_command(main, *arguments(cache, tmp_path / "runs", *no_dropout, "--resume"))
    assert code == 0, text
    assert "checkpoint.pt: by another number of processes (2, now 1): dropout is seeded anew" in text
    one = tune(run_command, cache, tmp_path / "unbroken", *no_dropout)
    columns = ["loss", "mse", "hca", "hea", "val_mse", "gradient_norm", "c"]
    np.testing.assert_allclose(fold_of(tmp_path / "runs").history[columns], one.history[columns], rtol=1e-4)


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_a_batch_that_cannot_be_divided(cache: Path, run_command: Run, dry_run: list[str], tmp_path: Path) -> None:
    code, text = run_command(main, *arguments(cache, tmp_path / "runs", "--jobs", 3, *dry_run))
    assert code == 2, text
    assert text.count("--batch-size 16: cannot be divided among 3 processes; give 15 or 18") == 1
    code, text = run_command(main, *arguments(cache, tmp_path / "runs", "--jobs", 2, "--device", "cpu", *dry_run))
    assert (code == 0) == bool(dry_run), text
    assert ("--device cpu: each process on a batch has a device of its own" in text) != bool(dry_run)


def test_without_a_number_of_blocks_as_many_as_there_are_are_adapted(
    cache: Path, run_command: Run, tmp_path: Path
) -> None:
    argv = ("--cache", cache, *LOSO, *SMALL, "--finetune-lora", "--precision", "fp32", "--dry-run")
    code, text = run_command(main, *argv)
    assert code == 0, text
    assert text.count("--lora-layers 6: timm:test_vit has 6 blocks, so all of them are adapted") == 1
    assert "last 6 blocks fine-tuned from tokens" in text
    named = run_command(main, *argv, "--lora-layers", 6)[1]
    folder = next(line for line in named.splitlines() if "full-lora6-" in line).split("full-lora6-")[1]
    assert folder in text, "the same run"
