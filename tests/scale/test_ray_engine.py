"""Ray for real: a head and two nodes of one core each, on loopback, with work that takes no time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from hist_cache.cluster.executor import RayExecutor
from hist_cache.cluster.gang import run_cluster_gang
from hist_cache.cluster.ray_cluster import Cluster, open_cluster
from hist_cache.errors import HistError, WriteError
from hist_cache.executor import Events, Failure, Shared, Worker
from hist_cache.gang import LostRankError
from hist_cache.stopping import Terminated
from tests.conftest import REPOSITORY
from tests.scale import ray_doubles as doubles
from tests.scale.machines import STORE, Machines, end, family, needs_ray, raylet, wait_until

pytestmark = [pytest.mark.slow, needs_ray, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def cluster(machines: Machines) -> Iterator[Cluster]:
    handler = signal.getsignal(signal.SIGTERM)
    with open_cluster(machines.address) as connected:
        assert signal.getsignal(signal.SIGTERM) is handler
        yield connected


class Record:
    """What a run has told."""

    def __init__(self, shared: Callable[[Any], Shared | None] = lambda task: None) -> None:
        self.messages: list[Any] = []
        self.results: dict[Any, Any] = {}
        self.failures: list[Failure[Any]] = []
        self.order: list[tuple[str, Any]] = []
        self.shared = shared

    def events(self) -> Events[Any, Any]:
        def on_message(task: Any, message: Any) -> None:
            self.messages.append(message)
            self.order.append(("message", task))

        def on_result(task: Any, result: Any) -> None:
            assert task not in self.results, "a task has one result"
            self.results[task] = result
            self.order.append(("result", task))

        return Events(on_message, on_result, self.failures.append, shared=self.shared)


def run(
    cluster: Cluster, folder: Path, tasks: Any, record: Record, workers: int = 2, **more: Any
) -> list[Failure[Any]]:
    worker: Worker[Any, Any] = Worker(doubles.start, doubles.work, folder, doubles.receive, **more)
    return RayExecutor(cluster, workers).run(tasks, worker, record.events())


def test_results_messages_and_failures(cluster: Cluster, tmp_path: Path) -> None:
    tasks = [("talk", 0), None, ("talk", 1), ("fail", 2), ("break", 3), None, ("talk", 4)]
    record = Record()
    told = record.failures
    failures = run(cluster, tmp_path, tasks, record)
    assert {(failure.task[1], failure.reason) for failure in failures} == {(2, "failed"), (3, "unexpected")}
    assert {str(f.error).split(";")[0] for f in failures} == {
        "task 2 cannot be done",
        "ValueError: nobody expects this",
    }
    assert told == failures
    assert "ray_doubles.py" in str(next(f for f in failures if f.task[1] == 3).error.__cause__)
    assert sorted(result["number"] for result in record.results.values()) == [0, 1, 4]
    for number in (0, 1, 4):
        assert [i for n, i in record.messages if n == number] == list(range(5))
        own = [kind for kind, task in record.order if task[1] == number]
        assert own == ["message"] * 5 + ["result"]
    assert cluster.describe() == "2 machines, 2 cores"


def test_shared_arrays_are_mapped(cluster: Cluster, tmp_path: Path) -> None:
    n_bytes = 48 * 2**20
    made: list[str] = []

    def shared(task: tuple[str, int]) -> Shared:
        key = f"key{task[1] // 4}"

        def make() -> dict[str, np.ndarray]:
            made.append(key)
            return {"ones": np.full(n_bytes // 8, 1.0 + task[1] // 4)}

        return Shared(key, make)

    record = Record(shared)
    assert run(cluster, tmp_path, [("sum", i) for i in range(4)] + [("talk", 9), ("sum", 4)], record) == []
    assert made == ["key0", "key2", "key1"] or made == ["key0", "key1", "key2"]
    sums = {task[1]: result for task, result in record.results.items() if task[0] == "sum"}
    assert [sums[i]["sum"] for i in (0, 1, 2, 3, 4)] == [n_bytes / 8] * 4 + [n_bytes / 4]
    assert [sums[i]["key"] for i in (0, 4)] == ["key0", "key1"]
    assert not any(result["writable"] for result in sums.values())
    assert all(result["grown"] < n_bytes / 3 for result in sums.values())


def test_arrays_that_do_not_fit(cluster: Cluster, tmp_path: Path) -> None:
    record = Record(lambda task: Shared("large", lambda: {"ones": np.empty(2 * STORE, dtype=np.uint8)}))
    with pytest.raises(HistError, match=r"167,772,160 bytes.* holds .*83,886,080 bytes"):
        run(cluster, tmp_path, [("sum", 0)], record, workers=1)


def test_a_task_that_kills_its_workers(cluster: Cluster, tmp_path: Path) -> None:
    record = Record()
    tasks = [("talk", 0), ("exit", 1), ("talk", 2), ("talk", 3)]
    failures = run(cluster, tmp_path, tasks, record, at_once=2, tries=3)
    assert [(failure.task, failure.reason) for failure in failures] == [(("exit", 1), "died")]
    assert "its process died (3 times, last on" in str(failures[0].error)
    assert sorted(result["number"] for result in record.results.values()) == [0, 2, 3]
    assert len(list(tmp_path.glob("began-1-*"))) == 3


@pytest.mark.long
def test_refused_workers(cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "only_one").touch()
    record = Record()
    refusals: list[str] = []

    def on_tick() -> None:
        refusals[:] = [line for line in caplog.messages if "no weights here" in line]
        if refusals:
            (tmp_path / "go").touch()

    worker: Worker[Any, Any] = Worker(doubles.start, doubles.work, tmp_path)
    events = Events(on_result=record.events().on_result, on_tick=on_tick)
    assert RayExecutor(cluster, 2).run([("wait", i) for i in range(3)], worker, events) == []
    assert len(record.results) == 3
    assert refusals == [f"{socket.gethostname()}: no weights here; this worker is left out"]
    with pytest.raises(HistError, match="no worker is left"):  # the place is claimed
        run(cluster, tmp_path, [("talk", 0)], Record(), workers=1)


@pytest.mark.long
def test_a_full_disk_ends_all(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="the disk is full; make room"):
        run(cluster, tmp_path, [("no disk", 0), ("wait", 1)], Record())


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop(cluster: Cluster, tmp_path: Path, number: signal.Signals) -> None:
    asked: list[bool] = []

    def on_tick() -> None:
        if not asked and len(list(tmp_path.glob("began-*"))) == 2:
            asked.append(True)
            os.kill(os.getpid(), number)

    worker: Worker[Any, Any] = Worker(doubles.start, doubles.work, tmp_path)
    with pytest.raises(KeyboardInterrupt) as caught:
        RayExecutor(cluster).run([("epochs", 0), ("epochs", 1), ("talk", 2)], worker, Events(on_tick=on_tick))
    assert {file.name for file in tmp_path.glob("checkpoint-*")} == {"checkpoint-0", "checkpoint-1"}
    assert isinstance(caught.value, Terminated) == (number == signal.SIGTERM)


@pytest.mark.long
def test_a_gang(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cluster_gang(cluster, 2, doubles.be_one_of_a_gang, (-1,)) == 3  # each is the first on its machine
    assert capsys.readouterr().out == "2 processes, sum 3\nthe end\n"  # of the first process alone
    with pytest.raises(LostRankError, match=r"^process 2 of 2 on one batch died on .* \(out of memory\?\)$"):
        run_cluster_gang(cluster, 2, doubles.be_one_of_a_gang, (1,))
    with pytest.raises(WriteError, match=r"^/there: full; make room$"):
        run_cluster_gang(cluster, 2, doubles.cannot_write)


@pytest.mark.long
def test_a_mailbox_that_is_killed(cluster: Cluster, machines: Machines, tmp_path: Path) -> None:
    """It is started again, and what is reported then comes; so does a request to stop."""
    stages: list[str] = []
    record = Record()

    def on_tick() -> None:
        if not stages and len(list(tmp_path.glob("began-*"))) == 2:
            stages.append("killed")
            [mailbox] = [p for p in machines.processes() if p.name().startswith("ray::Mailbox")]
            end([mailbox])
            record.messages.clear()
        elif len(stages) == 1 and {number for number, _ in record.messages} == {0, 1}:
            stages.append("heard again")
            os.kill(os.getpid(), signal.SIGINT)

    events = record.events()
    worker: Worker[Any, Any] = Worker(doubles.start, doubles.work, tmp_path)
    tasks = [("count", 0), ("count", 1)]
    with pytest.raises(KeyboardInterrupt):
        RayExecutor(cluster, 2).run(tasks, worker, Events(events.on_message, events.on_result, on_tick=on_tick))
    assert stages == ["killed", "heard again"]


def listening(processes: list[psutil.Process]) -> list[str]:
    """The addresses at which processes wait for connections."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found += [c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
    return [ip.removeprefix("::ffff:") for ip in found]


def test_nothing_listens_outside_of_loopback(cluster: Cluster, machines: Machines) -> None:
    found = listening(machines.processes())
    assert len(found) > 6
    assert set(found) == {"127.0.0.1"}


def test_kills_and_a_new_machine_in_one_run(cluster: Cluster, machines: Machines, tmp_path: Path) -> None:
    """The second death of a task is that of its machine, and costs it no try: with two tries, it is done."""
    stages: list[str] = []

    def begun(number: int) -> list[int]:
        files = sorted(tmp_path.glob(f"began-{number}-*"), key=lambda file: file.stat().st_mtime_ns)
        return [int(file.name.rpartition("-")[2]) for file in files]

    def on_tick() -> None:
        pids = begun(0)
        if not stages and pids and begun(1):
            os.kill(pids[0], signal.SIGKILL)
            stages.append("worker killed")
        elif len(stages) == 1 and len(pids) == 2:
            parents = [raylet(node) for node in machines.nodes]
            end(family(next(p.pid for p in psutil.Process(pids[1]).parents() if p.pid in parents)))
            stages.append("machine killed")
            machines.nodes.append(machines.add())
        elif len(stages) == 2 and len(pids) == 3:
            (tmp_path / "go").touch()

    record = Record()
    worker: Worker[Any, Any] = Worker(doubles.start, doubles.work, tmp_path, tries=2)
    events = record.events()
    events = Events(events.on_message, events.on_result, on_tick=on_tick)
    tasks = [("wait", i) for i in range(6)]
    assert RayExecutor(cluster, 2).run(tasks, worker, events) == []
    assert stages == ["worker killed", "machine killed"]
    assert sorted(result["number"] for result in record.results.values()) == list(range(6))


LOCAL = """
import sys
from pathlib import Path
from hist_cache.cluster.executor import RayExecutor
from hist_cache.console import fail, show_logs
from hist_cache.errors import HistError
from hist_cache.executor import Events, Worker
from hist_cache.cluster.ray_cluster import open_cluster
from tests.scale import ray_doubles as doubles

show_logs()
address, folder = sys.argv[1:]
try:
    with open_cluster(address or None) as cluster:
        print(cluster.address, flush=True)
        worker = Worker(doubles.start, doubles.work, Path(folder))
        RayExecutor(cluster, 1).run([("wait", 0)], worker, Events())
except HistError as error:
    fail(str(error))
    sys.exit(error.exit_code)
"""


@contextmanager
def driver(folder: Path, address: str = "", **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command that works on a cluster, of its own without an address."""
    command = [sys.executable, "-c", LOCAL, address, str(folder)]
    variables = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        command, env=variables | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        end(family(process.pid))
        process.communicate()


@pytest.mark.parametrize("token", ["", "f" * 64], ids=["none", "wrong"])
def test_a_cluster_takes_nobody_without_its_token(machines: Machines, tmp_path: Path, token: str) -> None:
    given = {"RAY_AUTH_TOKEN": token} if token else {"HOME": str(tmp_path)}
    with driver(tmp_path, machines.address, **given) as process:
        text, _ = process.communicate(timeout=60)
    assert process.returncode == 2, text
    assert text.startswith(f"error: --address {machines.address}: the token is wrong, or there is none"), text
    assert text.count("\n") == 1, text


@pytest.mark.long
def test_the_command_is_killed(tmp_path: Path) -> None:
    with driver(tmp_path) as process:
        wait_until(lambda: any(tmp_path.glob("began-0-*")), 90)
        processes = family(process.pid)
        assert set(listening(processes)) == {"127.0.0.1"}
        assert listening(processes[:1]), "the command too"
        agents = [p for p in processes if p.name() in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")]
        workers = [p for p in processes[1:] if p not in agents]
        assert any("ray::TaskProcess" in " ".join(p.cmdline()) for p in workers)
        process.kill()
        _, alive = psutil.wait_procs(workers, timeout=10)
        end(agents)  # Ray's own helpers try for about a minute to tell of it whom they cannot reach
        assert alive == []


@pytest.mark.long
def test_the_head_is_killed(tmp_path: Path) -> None:
    with driver(tmp_path) as process:
        wait_until(lambda: any(tmp_path.glob("began-0-*")), 90)
        next(p for p in family(process.pid) if p.name() == "gcs_server").kill()
        killed = time.monotonic()
        text, _ = process.communicate(timeout=60)
        assert time.monotonic() - killed < 30
    assert process.returncode == 1, text
    assert len(text.splitlines()) == 2, text
    assert "the head of the cluster at" in text.splitlines()[1]
