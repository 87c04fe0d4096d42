"""Gangs of processes that are killed, told to stop and left behind; what they run is tested with hist-train."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hist_cache.errors import HistError, InputError, WriteError
from hist_cache.gang import LostRankError, rank_environment, run_local_gang, run_with_restarts
from hist_cache.stopping import GracefulStop, Terminated
from tests.commands import Command

pytestmark = pytest.mark.usefixtures("quick")
PATIENCE_S = 60


def rank() -> int:
    return int(os.environ["RANK"])


def come_in(folder: Path) -> int:
    """Say who is there, with the process id, and wait until the others have; returns the rank."""
    (folder / f"{rank()}.writing").write_text(str(os.getpid()))
    (folder / f"{rank()}.writing").rename(folder / f"{rank()}")
    wait_until(lambda: all((folder / str(i)).exists() for i in range(int(os.environ["WORLD_SIZE"]))))
    return rank()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_there(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def pids(folder: Path) -> list[int]:
    return [int((folder / str(i)).read_text()) for i in (0, 1)]


def sum_up(folder: Path) -> int:
    """What the processes know of each other, by torch's own means; the first one listens to nothing outside."""
    import torch
    import torch.distributed as dist

    from train import distributed

    assert distributed.init() == torch.device("cpu")
    total = distributed.all_reduce_sum(torch.tensor([float(rank() + 1)]))
    assert dist.get_world_size() == int(os.environ["LOCAL_WORLD_SIZE"]) == 2
    assert torch.get_num_threads() == 1
    (folder / f"sum{rank()}").write_text(f"{total.item():g} {' '.join(listening())}")
    distributed.destroy()
    return rank() * int(total.item())


def listening() -> set[str]:
    """The addresses, in hexadecimal, at which this process and the one that has started it listen."""
    sockets = set()
    for pid in (os.getpid(), int(os.environ["STARTED_BY"])):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with_number = os.readlink(link) if link.is_symlink() else ""
            if with_number.startswith("socket:["):
                sockets.add(with_number[len("socket:[") : -1])
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {line[1].split(":")[0] for line in lines if line[3] == "0A" and line[9] in sockets}


def test_they_find_each_other_on_this_machine_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started_by = {"STARTED_BY": str(os.getpid())}
    monkeypatch.setattr("hist_cache.gang.rank_environment", lambda *w: rank_environment(*w) | started_by)
    assert run_local_gang(2, sum_up, (tmp_path,)) == 3, "the larger code"
    for i in (0, 1):
        total, *addresses = (tmp_path / f"sum{i}").read_text().split()
        assert total == "3"
        assert addresses == ["0100007F"], "127.0.0.1"


def kill_the_second(folder: Path) -> int:
    if come_in(folder) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10 * PATIENCE_S)
    return 0


def test_a_lost_process_ends_the_others_at_once(tmp_path: Path) -> None:
    with pytest.raises(LostRankError, match=r"process 2 of 2 on one batch died \(killed by SIGKILL; out of memory\?\)"):
        run_local_gang(2, kill_the_second, (tmp_path,))
    assert not any(map(is_there, pids(tmp_path)))


def test_it_is_started_again_three_times_at_most(caplog: pytest.LogCaptureFixture) -> None:
    started: list[int] = []

    def lose(times: int) -> Callable[[int], int]:
        def start_gang(restart: int) -> int:
            started.append(restart)
            if restart < times:
                raise LostRankError("process 2 of 2 died")
            return 0

        return start_gang

    with caplog.at_level(logging.WARNING):
        assert run_with_restarts(lose(3)) == 0
    assert started == [0, 1, 2, 3]
    assert caplog.messages[-1] == "process 2 of 2 died; all start again from the last checkpoint (restart 3 of 3)"
    with pytest.raises(HistError, match="process 2 of 2 died; given up after 3 restarts; the same command goes on"):
        run_with_restarts(lose(4))
    assert started[4:] == [0, 1, 2, 3]


def fail(folder: Path, kind: str) -> int:
    """The first one fails; what the other one then meets is not its own fault."""
    if come_in(folder) == 1:
        wait_until(lambda: not is_there(pids(folder)[0]))
        raise RuntimeError("Connection closed by peer")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    errors = {"input": InputError("--lr 0"), "write": WriteError("/there", "full", "make room"), "fault": KeyError("x")}
    raise errors[kind] if kind in errors else BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("input", InputError, "--lr 0"),
        ("write", WriteError, "/there: full; make room"),
        ("fault", HistError, "KeyError: 'x'; --debug shows where it happened"),
        ("nobody reads", BrokenPipeError, "Broken pipe"),
        ("killed", LostRankError, "process 1 of 2"),
    ],
)
def test_what_one_process_fails_by_is_the_error_of_all(
    tmp_path: Path, kind: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error) as caught:
        run_local_gang(2, fail, (tmp_path, kind))
    assert type(caught.value) is error
    assert says in str(caught.value)
    assert not any(map(is_there, pids(tmp_path)))


def stop_well(folder: Path) -> int:
    """Both end what they are at; the second one does not hear of a stop that is asked for twice."""
    with GracefulStop("stopping") as stop:
        come_in(folder)
        wait_until(lambda: stop.requested > 0)
    time.sleep(0.3)
    (folder / f"stopped{rank()}-{stop.requested}").touch()
    raise KeyboardInterrupt


def hang(folder: Path) -> int:
    """One that waits for another in C does not hear a signal."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    come_in(folder)
    time.sleep(10 * PATIENCE_S)
    return 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_reaches_all_once(tmp_path: Path, number: signal.Signals) -> None:
    """Also where a scheduler sends it to all processes."""

    def ask() -> None:
        wait_until(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists())
        for pid in (os.getpid(), *(pids(tmp_path) if number == signal.SIGTERM else [])):
            os.kill(pid, number)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(KeyboardInterrupt) as caught:
        run_local_gang(2, stop_well, (tmp_path,))
    assert isinstance(caught.value, Terminated) == (number == signal.SIGTERM)
    asking.join()
    assert {path.name for path in tmp_path.glob("stopped*")} == {"stopped0-1", "stopped1-1"}


def test_one_that_does_not_stop_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hist_cache.gang.JOIN_S", 0.2)

    def ask() -> None:
        wait_until(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists())
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(KeyboardInterrupt):
        run_local_gang(2, hang, (tmp_path,))
    asking.join()
    assert not any(map(is_there, pids(tmp_path)))


def test_none_outlives_the_process_that_has_started_them(tmp_path: Path, start_command: Callable[..., Command]) -> None:
    script = (
        "import sys; from pathlib import Path\nfrom hist_cache.gang import run_local_gang\n"
        "from tests.hist_cache.test_gang import hang\nrun_local_gang(2, hang, (Path(sys.argv[1]),))"
    )
    command = start_command(script, tmp_path)
    wait_until(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists())
    command.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(map(is_there, pids(tmp_path))))


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(InputError, match="2 processes on one batch need a GPU each, and 1 can be seen here"):
        run_local_gang(2, hang)
