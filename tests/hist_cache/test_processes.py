"""Worker processes: results, messages, failures, deaths, signals; the serial executor does the same in this process."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hist_cache.errors import HistError
from hist_cache.executor import Events, Executor, Report, SerialExecutor, Shared, Worker
from hist_cache.processes import ProcessExecutor, cores
from hist_cache.stopping import GracefulStop
from tests.commands import REPOSITORY, Command


@dataclass
class Context:
    """What a worker makes once: it counts its tasks."""

    base: int
    tasks: int = 0


def start(setup: int) -> Context:
    return Context(setup)


def work(context: Context, task: str, report: Report) -> tuple[str, int, int]:
    context.tasks += 1
    report(f"at {task}")
    if task == "fail":
        raise HistError("as expected")
    if task == "surprise":
        raise ZeroDivisionError("not expected")
    if task == "die":
        os._exit(7)
    return task, context.base, os.getpid()


EXECUTORS = [SerialExecutor(), ProcessExecutor(2)]


@pytest.mark.slow
@pytest.mark.parametrize("executor", EXECUTORS, ids=["serial", "processes"])
def test_tasks_are_done_and_expected_failures_named(executor: Executor) -> None:
    messages: list[tuple[str, Any]] = []
    results: dict[str, tuple[str, int, int]] = {}
    events = Events(lambda task, m: messages.append((task, m)), lambda task, r: results.update({task: r}))
    failures = executor.run(["a", "fail", "b", "c"], Worker(start, work, 5), events)
    assert [(f.task, str(f.error), f.reason) for f in failures] == [("fail", "as expected", "failed")]
    assert {task: result[:2] for task, result in results.items()} == {t: (t, 5) for t in "abc"}
    assert sorted(messages) == [(t, f"at {t}") for t in ("a", "b", "c", "fail")]
    own = {result[2] == os.getpid() for result in results.values()}
    assert own == {isinstance(executor, SerialExecutor)}


def test_a_failure_can_stop_the_rest() -> None:
    with pytest.raises(HistError, match="as expected"):
        SerialExecutor(stop_at_failure=True).run(["fail", "a"], Worker(start, work, 0), Events())


@pytest.mark.usefixtures("quick")
def test_a_worker_that_dies_costs_one_task() -> None:
    results: list[str] = []
    events: Events[str, Any] = Events(on_result=lambda task, r: results.append(task))
    failures = ProcessExecutor(2).run(["die", "a", "b"], Worker(start, work, 0), events)
    by_task = {f.task: f for f in failures}
    assert by_task["die"].reason == "died"
    assert "exit code 7" in str(by_task["die"].error)
    assert sorted(results) == ["a", "b"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("executor", EXECUTORS, ids=["serial", "processes"])
def test_an_error_that_nobody_expects_is_one_line_and_costs_one_task(executor: Executor) -> None:
    results: list[str] = []
    events: Events[str, Any] = Events(on_result=lambda task, r: results.append(task))
    [failure] = executor.run(["a", "surprise", "b"], Worker(start, work, 0), events)
    assert (failure.task, failure.reason) == ("surprise", "unexpected")
    assert str(failure.error) == "ZeroDivisionError: not expected; --debug shows where it happened"
    assert 'raise ZeroDivisionError("not expected")' in "".join(traceback.format_exception(failure.error))
    assert sorted(results) == ["a", "b"]


@pytest.mark.usefixtures("quick")
def test_without_workers_what_is_left_is_named() -> None:
    failures = ProcessExecutor(1).run(["die", "a"], Worker(start, work, 0), Events())
    assert [(f.task, f.reason) for f in failures] == [("die", "died"), ("a", "not run")]
    assert "no process was left" in str(failures[1].error)


@pytest.mark.usefixtures("quick")
def test_each_task_is_prepared_before_it_is_handed_out_and_ticks_come_while_they_run() -> None:
    prepared: list[str] = []
    ticks: list[int] = []
    events: Events[str, Any] = Events(on_tick=lambda: ticks.append(1), shared=lambda task: prepared.append(task))
    ProcessExecutor(1).run(["a", "b"], Worker(start, work, 0), events)
    assert prepared == ["a", "b"]
    assert ticks


def work_in_threads(context: Context, task: str, report: Report) -> tuple[str, str]:
    report(threading.current_thread().name)
    if task == "die":
        os._exit(7)
    time.sleep(0.3)
    return task, os.environ.get("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("quick")
def test_a_task_that_kills_its_workers_fails_after_its_tries_and_brings_no_other_down() -> None:
    """Several tasks are under way in the process that dies; a task of the future comes while the others are done."""
    results: list[str] = []
    deaths: list[str] = []
    events: Events[str, Any] = Events(
        lambda task, m: deaths.append(m) if task == "die" else None, lambda task, r: results.append(task)
    )
    worker = Worker(start, work_in_threads, 0, at_once=3, tries=3)
    [failure] = ProcessExecutor(2).run(["a", "die", "b", None, "c", "d", None, "e"], worker, events)
    assert (failure.task, failure.reason) == ("die", "died")
    assert sorted(results) == ["a", "b", "c", "d", "e"]
    assert len(deaths) <= 3


@pytest.mark.usefixtures("quick")
def test_tasks_are_dealt_evenly_also_where_a_process_takes_several() -> None:
    by_process: dict[int, list[str]] = {}
    events: Events[str, Any] = Events(lambda task, pid: by_process.setdefault(pid, []).append(task))
    assert not ProcessExecutor(2).run(["a", "b", "c", "d"], Worker(start, name_process, 0, at_once=3), events)
    assert sorted(map(len, by_process.values())) == [2, 2]


def name_process(context: Context, task: str, report: Report) -> None:
    report(os.getpid())
    logging.getLogger("extract.test").warning("spots lie outside")
    time.sleep(1.0)


@pytest.mark.usefixtures("quick")
def test_warnings_of_workers_are_shown_once_and_failures_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    events: Events[str, Any] = Events(
        on_result=lambda task, r: told.append(task), on_failure=lambda f: told.append(f"{f.task}: {f.error}")
    )
    assert not ProcessExecutor(1).run(["a", "b"], Worker(start, name_process, 0), events)
    assert [record.message for record in caplog.records].count("spots lie outside") == 1
    assert len(ProcessExecutor(1).run(["c", "fail", "d"], Worker(start, work, 0), events)) == 1
    assert told == ["a", "b", "c", "fail: as expected", "d"]


@pytest.mark.usefixtures("quick")
def test_each_process_sees_one_gpu() -> None:
    seen: list[str] = []
    events: Events[str, Any] = Events(on_result=lambda task, r: seen.append(r[1]))
    worker = Worker(start, work_in_threads, 0)
    ProcessExecutor(2, gpus=["GPU-a", "3"]).run(["a", "b", "c", "d"], worker, events)
    assert sorted(set(seen)) == ["3", "GPU-a"]


def start_on_few(folder: Path) -> Path:
    """Fails in all processes but the first that comes."""
    try:
        (folder / "taken").mkdir()
    except FileExistsError:
        raise HistError("no data here") from None
    return folder


def read_shared(folder: Path, task: str, report: Report) -> tuple[float, bool]:
    array = RECEIVED[0]
    return float(array.sum()), isinstance(array, np.memmap)


RECEIVED: list[np.ndarray] = []


def receive(folder: Path, key: str, arrays: dict[str, np.ndarray]) -> None:
    assert set(arrays) == {"values", "names", "none"}
    assert arrays["names"].tolist() == [key, "b"]
    assert arrays["none"].shape == (0, 3)
    RECEIVED[:] = [arrays["values"]]


@pytest.mark.usefixtures("quick")
def test_shared_arrays_are_made_once_and_mapped_and_a_worker_that_cannot_start_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[str] = []
    results: dict[str, tuple[float, bool]] = {}

    def arrays(key: str) -> dict[str, np.ndarray]:
        made.append(key)
        return {"values": np.full(4, float(key)), "names": np.array([key, "b"]), "none": np.empty((0, 3))}

    events: Events[str, Any] = Events(
        on_result=lambda task, r: results.update({task: r}),
        shared=lambda task: Shared(task[0], lambda: arrays(task[0])),
    )
    worker = Worker(start_on_few, read_shared, tmp_path, receive)
    assert not ProcessExecutor(2).run(["1a", "1b", "2a", "2b", "1c"], worker, events)
    assert results == {"1a": (4, True), "1b": (4, True), "2a": (8, True), "2b": (8, True), "1c": (4, True)}
    assert sorted(made) == ["1", "2"]
    assert caplog.text.count("is left out: no data here") == 1
    with pytest.raises(HistError, match="no data here"):
        ProcessExecutor(2).run(["1a", "1b"], worker, events)


def slow(context: Any, task: int, report: Report) -> int:
    with GracefulStop("stopping") as stop:
        report("running")
        for _ in range(600):
            time.sleep(0.05)
            if stop.requested:
                raise KeyboardInterrupt
    return task


SCRIPT = """
import sys
from hist_cache.executor import Events, Worker
from hist_cache.processes import ProcessExecutor
from tests.hist_cache.test_processes import slow, start
if __name__ == "__main__":
    try:
        ProcessExecutor(2).run(range(4), Worker(start, slow, 0), Events(lambda task, m: print(m, task, flush=True)))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_the_workers_end_what_they_are_at(number: int, start_command: Callable[..., Command]) -> None:
    process = start_command(SCRIPT)
    for _ in range(2):
        assert "running" in process.stdout.readline()
    process.send_signal(number)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130, rest
    assert "running" not in rest, "no further task was begun"


STARTING = """
import sys
from hist_cache.executor import Events, Worker
from hist_cache.processes import ProcessExecutor
from tests.hist_cache.test_processes import slow, start
if __name__ == "__main__":
    print("starting", flush=True)
    try:
        ProcessExecutor(2).run(range(4), Worker(start, slow, "x" * 10**6), Events())
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.long
@pytest.mark.parametrize("delay", [0.0, 0.05, 0.5])
def test_ctrl_c_while_workers_start_ends_it(delay: float) -> None:
    """To the whole group of processes, as a terminal sends it; what the workers are sent fills any pipe."""
    process = subprocess.Popen(
        [sys.executable, "-c", STARTING], env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "starting\n"
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    text = process.communicate(timeout=60)[0]
    assert process.returncode in (130, 1 if delay == 0 else 130), text
    if delay:
        assert "Traceback" not in text


def test_a_second_request_interrupts_at_once() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with GracefulStop("stopping") as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == handler


def test_other_threads_hear_no_signals() -> None:
    requests: list[int] = []

    def run() -> None:
        with GracefulStop("stopping") as stop:
            requests.append(stop.requested)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert requests == [0]


def test_cores_are_those_that_may_be_used() -> None:
    assert len(cores()) == len(os.sched_getaffinity(0))


def start_badly(setup: str) -> None:
    """Never called: what breaks is to find it."""


class Unreadable:
    """Setup that a worker cannot read: it raises, dies, or hangs."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> tuple[Any, ...]:
        return fail_to_start, (self.how,)


def fail_to_start(how: str) -> None:
    if how == "raises":
        raise ModuleNotFoundError("No module named 'gone'")
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exits":
        sys.exit(3)
    time.sleep(60)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("raises", "failed while it started: ModuleNotFoundError: No module named 'gone'"),
        ("dies", "died while it started: killed by SIGKILL"),
        ("exits", "died while it started: exit code 3"),
        ("hangs", "did not start within 0.5 s"),
    ],
)
def test_a_worker_that_does_not_start_is_named(how: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hist_cache.processes.START_S", 0.5 if how == "hangs" else 60)
    began = time.monotonic()
    with pytest.raises(HistError, match=rf"worker [12] of 2 \(process \d+\) {says}"):
        ProcessExecutor(2).run(["a", "b", "c"], Worker(start_badly, work, Unreadable(how)), Events())
    assert time.monotonic() - began < 20


SHADOWED = """
import sys
import traceback
from hist_cache.commands import claim_packages
if __name__ == "__main__":
    claim_packages()
    from hist_cache.executor import Events, Worker
    from hist_cache.processes import ProcessExecutor
    from sweeps.space import Parameter
    from train.metrics import summarize_centered
    for failure in ProcessExecutor(1).run([1], Worker(Parameter, summarize_centered, "alpha"), Events()):
        traceback.print_exception(failure.error, file=sys.stdout)
"""


@pytest.mark.slow
def test_workers_leave_the_users_own_train_py_alone(tmp_path: Path) -> None:
    """In a folder whose modules have the names of our packages; the task itself, for which all is missing, fails."""
    for name in ("train.py", "extract.py", "sweeps.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong one')\n")
    (tmp_path / "command.py").write_text(SHADOWED)
    done = subprocess.run(
        [sys.executable, "command.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the wrong one" not in done.stdout + done.stderr
    assert done.stdout.count("in summarize_centered") == 1
    assert f"{REPOSITORY}/train/metrics.py" in done.stdout
