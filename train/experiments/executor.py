"""Running folds: one after the other in this process, or several at once in processes pinned to cores of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hist_cache.cache import CachedSlide
from hist_cache.console import hush, say
from hist_cache.errors import HistError
from train import distributed
from train.data import SpotData
from train.experiments.fold import run_fold
from train.experiments.jobs import Job
from train.workspace import DataKey, Workspace

if TYPE_CHECKING:
    from train.finetune.encoder import Finetuner

MOST_WORKERS = 4

OnEpoch = Callable[[Job, dict[str, float]], None]
OnDone = Callable[[Job, dict[str, Any]], None]


def cores() -> list[int]:
    """The CPU cores this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def default_workers(jobs: int, device: torch.device) -> int:
    """Folds to train at once: on a CPU one a core, up to 4 (each holds a model and its optimiser); one on a GPU."""
    return 1 if device.type == "cuda" else max(1, min(jobs, len(cores()), MOST_WORKERS))


def run_jobs(
    jobs: Sequence[Job],
    workspace: Workspace,
    device: torch.device,
    workers: int,
    on_epoch: OnEpoch,
    on_done: OnDone,
    tuner: Finetuner | None = None,
) -> list[tuple[Job, HistError]]:
    """Run all; returns those that failed, and why. Interrupted, what runs is kept and KeyboardInterrupt raised.

    tuner: for jobs that tune the encoder, which are run one after the other.
    """
    if tuner is None and workers > 1 and len(jobs) > 1:
        with tempfile.TemporaryDirectory(prefix="hist-train-") as folder:
            return _Pool(workspace, device, min(workers, len(jobs)), Path(folder)).run(jobs, on_epoch, on_done)
    failed: list[tuple[Job, HistError]] = []
    pictures = workspace.pictures
    for job in jobs:
        data, own_tuner = workspace.data(job.data, device), None
        if tuner is not None and job.setting.tuning is not None:
            data, own_tuner = tuner.data(data, job.data.neighbors, job.setting.tuning), tuner

        def report(row: dict[str, float], job: Job = job) -> None:
            on_epoch(job, row)

        try:
            metrics = run_fold(job.folder, job.setting, data, pictures, job.split, device, report, own_tuner)
        except HistError as error:
            if distributed.world_size() > 1:
                raise  # the others must not wait for this process
            failed.append((job, error))
        else:
            if metrics:
                on_done(job, metrics)
    return failed


class _Pool:
    """Worker processes, each with a pipe: a job goes down, epochs and then metrics or an error come up."""

    def __init__(self, workspace: Workspace, device: torch.device, workers: int, folder: Path) -> None:
        self.workspace, self.device, self.folder = workspace, device, folder
        self.files: dict[DataKey, Path] = {}
        context = multiprocessing.get_context("spawn")  # a fork would inherit OpenMP's threads, half of them dead
        mine, share = cores(), max(1, len(cores()) // workers)
        self.pipes: dict[Connection, Any] = {}
        for i in range(workers):
            pipe, theirs = context.Pipe()
            own = mine[i * share : (i + 1) * share] or mine
            process = context.Process(target=_work, args=(theirs, own, device, workspace.pictures), daemon=True)
            process.start()
            theirs.close()
            self.pipes[pipe] = process

    def run(self, jobs: Sequence[Job], on_epoch: OnEpoch, on_done: OnDone) -> list[tuple[Job, HistError]]:
        failed: list[tuple[Job, HistError]] = []
        waiting, running = list(jobs), dict[Connection, Job]()
        asked = 0

        def stop(number: int, frame: object) -> None:
            nonlocal asked
            asked += 1
            if asked == 1:
                say("stopping at the end of the epochs that run (once more to stop at once)")
            for process in self.pipes.values():
                process.terminate()

        before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            for pipe in self.pipes:
                self._next(pipe, waiting, running)
            while running:
                ready = wait(list(running))
                for pipe in [p for p in running if p in ready]:
                    kind, content = self._receive(pipe)
                    if kind == "epoch":
                        on_epoch(running[pipe], content)
                        continue
                    job = running.pop(pipe)
                    if kind == "done":
                        on_done(job, content)
                    elif kind == "failed":
                        failed.append((job, HistError(content)))
                    elif kind == "died" and not asked:
                        failed.append((job, HistError(f"{job.title}: its process died ({content}); out of memory?")))
                    if not asked and kind != "died":
                        self._next(pipe, waiting, running)
            if asked:
                raise KeyboardInterrupt
            failed += [(job, HistError(f"{job.title}: not run, no process was left")) for job in waiting]
            return failed
        finally:
            for pipe, process in self.pipes.items():
                pipe.close()  # an idle worker ends when its pipe does
                process.join(10)
                process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _next(self, pipe: Connection, waiting: list[Job], running: dict[Connection, Job]) -> None:
        if waiting:
            running[pipe] = waiting.pop(0)
            with suppress(BrokenPipeError):  # a dead worker is found when it is heard
                pipe.send((running[pipe], self._file(running[pipe].data)))

    def _file(self, key: DataKey) -> Path:
        """The tensors of a key in a file that all workers map into memory: one copy, however many they are."""
        if key not in self.files:
            self.files[key] = self.folder / f"data{len(self.files)}.pt"
            data = self.workspace.data(key, torch.device("cpu"))
            torch.save({k: v for k, v in vars(data).items() if k not in ("memo", "frontier")}, self.files[key])
        return self.files[key]

    def _receive(self, pipe: Connection) -> tuple[str, Any]:
        try:
            return pipe.recv()
        except (EOFError, ConnectionResetError):
            self.pipes[pipe].join(10)
            return "died", f"exit code {self.pipes[pipe].exitcode}"


def _work(pipe: Connection, own: list[int], device: torch.device, pictures: dict[str, CachedSlide]) -> None:
    """A worker's life: jobs from the pipe until it closes."""
    os.setpgid(0, 0)  # Ctrl-C on the terminal reaches the parent alone, which passes it on
    signal.signal(signal.SIGTERM, _interrupt)
    hush()  # the parent does the talking
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, own)
    torch.set_num_threads(len(own))
    latest: tuple[Path, SpotData] | None = None
    with suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            job, file = pipe.recv()
            if latest is None or latest[0] != file:
                latest = (file, _map(file, device))
            pipe.send(_run(job, latest[1], pictures, device, pipe))


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _map(file: Path, device: torch.device) -> SpotData:
    stored: dict[str, Any] = torch.load(file, mmap=True, weights_only=True)
    moved: dict[str, Any] = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in stored.items()}
    return SpotData(**moved)


def _run(
    job: Job, data: SpotData, pictures: dict[str, CachedSlide], device: torch.device, pipe: Connection
) -> tuple[str, Any]:
    def report(row: dict[str, float]) -> None:
        pipe.send(("epoch", row))

    try:
        return "done", run_fold(job.folder, job.setting, data, pictures, job.split, device, report)
    except KeyboardInterrupt:
        return "stopped", None
    except BrokenPipeError:
        raise
    except HistError as error:
        return "failed", str(error)
    except Exception:
        return "failed", traceback.format_exc()
