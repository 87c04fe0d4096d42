"""The commands on a Ray cluster: the files and numbers of one process, also where workers and machines are lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from extract.cli import main as extract_main
from hist_cache.cache import open_cache
from tests.conftest import HIST_EXTRACT, TINY_ENCODER, write_slide
from tests.extract.test_scheduler import options
from tests.extract.test_workers import digests
from tests.scale.machines import Machines, end, family, needs_ray, raylet
from train.cli import main as train_main

pytestmark = [pytest.mark.slow, needs_ray, pytest.mark.timeout(280)]
Run = Callable[..., tuple[int, str]]
HIST_SWEEP = "from sweeps.cli import main; raise SystemExit(main())"


def on(machines: Machines) -> list[object]:
    return ["--engine", "ray", "--address", machines.address]


def metrics(runs: Path) -> dict[str, dict[str, object]]:
    found = {str(file.relative_to(runs)): json.loads(file.read_text()) for file in runs.rglob("metrics.json")}
    return {name: {k: v for k, v in values.items() if k != "seconds"} for name, values in found.items()}


@pytest.mark.usefixtures("quick")
def test_extraction(machines: Machines, hest_root: Path, run_command: Run) -> None:
    """The same files as of one process; relative paths are those of the command."""
    for i in range(3, 7):
        write_slide(hest_root, f"TINY{i}", seed=i)
    slides = ["--ids", ",".join(f"TINY{i}" for i in range(1, 7))]
    code, text = run_command(extract_main, *options(hest_root, *slides, "--cache", "one"))
    assert code == 0, text
    code, text = run_command(extract_main, *options(hest_root, *slides, "--cache", "many", *on(machines)))
    assert code == 0, text
    assert "Ray: 2 machines, 2 cores, 2 at once" in text
    one, many = (open_cache(Path(name), "custom") for name in ("one", "many"))
    assert one.folder.name == many.folder.name
    assert digests(one) == digests(many)
    assert len(digests(many)) == 6
    assert not [file for file in many.folder.rglob("*") if "partial" in file.name or file.suffix == ".lock"]


@pytest.mark.long
@pytest.mark.usefixtures("quick")
def test_tokens_and_folds(machines: Machines, hest_root: Path, run_command: Run, tmp_path: Path) -> None:
    """The same numbers as in one process; again nothing is run."""
    for i in range(3, 5):
        write_slide(hest_root, f"TINY{i}", seed=i)
    slides = ["--ids", "TINY1,TINY2,TINY3,TINY4", "--tokens-at", "1"]
    for name, engine in (("one", []), ("many", on(machines))):
        code, text = run_command(extract_main, *options(hest_root, *slides, "--cache", name, *engine))
        assert code == 0, text
    assert digests(open_cache(Path("one"), "custom")) == digests(open_cache(Path("many"), "custom"))
    grid = ["--dataset", "custom", "--ablation", "full,no_hea", "--split", "slide", "--folds", 2, "--epochs", 2]
    grid += ["--cache", "one", "--genes", "hvg", "--n-genes", 20]
    code, text = run_command(train_main, *grid, "--runs", "alone")
    assert code == 0, text
    code, text = run_command(train_main, *grid, "--runs", "together", *on(machines))
    assert code == 0, text
    alone, together = metrics(tmp_path / "alone"), metrics(tmp_path / "together")
    assert len(alone) == 4
    assert together == alone
    code, text = run_command(train_main, *grid, "--runs", "together", *on(machines))
    assert code == 0, text
    assert "4 done before, not run again" in text


def workers() -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.cmdline() and "ray::TaskProcess" in process.cmdline()[0]:
                yield process
        except psutil.Error:
            pass


def machine_of(process: psutil.Process, machines: Machines) -> int:
    raylets = {raylet(node) for node in machines.nodes}
    return next(parent.pid for parent in process.parents() if parent.pid in raylets)


@pytest.mark.long
def test_extraction_loses_a_worker_and_a_machine_and_gains_one(
    machines: Machines, hest_root: Path, run_command: Run, tmp_path: Path
) -> None:
    slides = [f"LARGE{i}" for i in range(10)]
    for i, slide in enumerate(slides):
        write_slide(hest_root, slide, rows=30, columns=30, seed=i)
    given = ["--ids", ",".join(slides), "--data-root", hest_root, "--encoder", TINY_ENCODER, "--random-weights"]
    given += ["--precision", "fp32"]
    argv = [str(word) for word in (*given, "--cache", tmp_path / "many", *on(machines))]
    command = subprocess.Popen(
        [sys.executable, "-c", HIST_EXTRACT, *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lost: list[int] = []
    while command.poll() is None and len(lost) < 2:
        time.sleep(0.2)
        made = len(list((tmp_path / "many").rglob("LARGE*.h5")))
        if made >= len(lost) + 1 and (at_work := list(workers())):
            if not lost:
                os.kill(at_work[0].pid, signal.SIGKILL)
                lost.append(at_work[0].pid)
            elif len(at_work) == 2:
                lost.append(machine_of(at_work[0], machines))
                end(family(lost[-1]))
                machines.nodes.append(machines.add())
    text, _ = command.communicate(timeout=200)
    assert command.returncode == 0, text
    assert len(lost) == 2, text
    code, text = run_command(extract_main, *given, "--cache", tmp_path / "one")
    assert code == 0, text
    assert digests(open_cache(tmp_path / "many", "custom")) == digests(open_cache(tmp_path / "one", "custom"))


@pytest.mark.long
def test_a_sweep_loses_a_worker(machines: Machines, hest_root: Path, run_command: Run, tmp_path: Path) -> None:
    """Its trial is run again, and there are as many as asked for."""
    for i in range(3, 5):
        write_slide(hest_root, f"TINY{i}", seed=i)
    code, text = run_command(extract_main, *options(hest_root, "--ids", "TINY1,TINY2,TINY3,TINY4"))
    assert code == 0, text
    argv = [
        "--dataset",
        "custom",
        "--trials",
        8,
        "--epochs",
        30,
        "--width",
        8,
        "--depth",
        1,
        "--split",
        "slide",
        "--folds",
        2,
        "--n-genes",
        20,
    ]
    argv += ["--genes", "hvg", "--cache", "cache", "--runs", "runs", *on(machines)]
    command = subprocess.Popen(
        [sys.executable, "-c", HIST_SWEEP, *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    journal, killed = "", False
    while command.poll() is None and not killed:
        time.sleep(0.1)
        journal = "".join(file.read_text() for file in (tmp_path / "runs").rglob("journal.log"))
        at_work = list(workers())
        if len(at_work) == 2 and journal.count('"op_code":4') > 1:
            at_work[0].kill()
            killed = True
    text, _ = command.communicate(timeout=200)
    assert command.returncode == 0, text
    assert killed, text
    [trials] = (tmp_path / "runs").glob("*/sweep-*/trials.csv")
    states = [line.split(",")[1] for line in trials.read_text().splitlines()[1:]]
    assert sum(state in ("complete", "pruned") for state in states) == 8, states
