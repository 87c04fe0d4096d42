"""What the command makes of processes that are lost, of messages, and of arrays that are shared; without Ray."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hist_cache.cluster import executor, inbox, seats
from hist_cache.cluster.courier import Courier
from hist_cache.cluster.executor import START_TRIES, _Crew
from hist_cache.cluster.facts import LostProcessError, ProcessPlace
from hist_cache.cluster.gang import _ClusterGang
from hist_cache.cluster.ray_cluster import Cluster
from hist_cache.cluster.room import Size
from hist_cache.cluster.seats import Death, Seat, SharedArrays
from hist_cache.errors import HistError, WriteError
from hist_cache.executor import Events, Shared, Worker
from hist_cache.gang import LostRankError
from hist_cache.stopping import GracefulStop
from hist_cache.task_queue import Handed
from tests.hist_cache.cluster.doubles import PlainCluster, node

NEVER = LostProcessError("ModuleNotFoundError: no hist_cache", never_began=True, address="10.0.0.1")


def nothing(*_: Any) -> None:
    pass


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> _Crew[int, None]:
    """Four workers whose processes are started."""
    numbers = itertools.count()
    monkeypatch.setattr(_Crew, "_new_process", lambda self: next(numbers))
    monkeypatch.setattr(executor, "call", lambda process, method: (process, method))
    monkeypatch.setattr(executor, "end_process", nothing)
    monkeypatch.setattr(executor, "AGAIN_S", -1.0)
    made: _Crew[int, None] = _Crew(PlainCluster(node("a")), Size(), [1, 2], Worker(nothing, nothing, None), Events())
    made._seats = [Seat(i, i, (i, "hello")) for i in range(4)]
    return made


def place(name: str) -> ProcessPlace:
    return ProcessPlace(name, name, "10.0.0.1", 1, (), {})


def test_a_machine_without_the_project_costs_no_worker(
    crew: _Crew[int, None], caplog: pytest.LogCaptureFixture
) -> None:
    for seat in crew._seats[1:]:
        crew._lost(seat, NEVER)
    assert not any(seat.refused for seat in crew._seats)
    assert not any(seat.ready for seat in crew._seats)
    assert [line.split(" (")[0] for line in caplog.messages] == ["a: hist-cache cannot be started there"]
    for _ in range(3 * START_TRIES):  # one at a time; while another may get ready, for ever
        crew._try_again()
        crew._try_again()
        [trying] = [seat for seat in crew._seats if seat.trying]
        crew._lost(trying, NEVER)
    crew._try_again()
    [trying] = [seat for seat in crew._seats if seat.trying]
    crew._answered(trying, trying.opening, ProcessPlace("b", "b", "10.0.0.2", 1, (), crew._own), False)
    assert trying.opening[1] == "start"
    assert not trying.trying
    crew._try_again()
    assert sum(seat.trying for seat in crew._seats) == 1, "the next one follows"


def test_machines_without_the_project_alone(crew: _Crew[int, None]) -> None:
    for seat in crew._seats:
        crew._lost(seat, NEVER)
    for _ in range(START_TRIES):
        crew._try_again()
        assert crew.going(False)
        crew._lost(next(seat for seat in crew._seats if seat.trying), NEVER)
    crew._try_again()
    with pytest.raises(HistError, match="no worker is left"):
        crew.going(False)


def test_processes_that_die_before_they_say_where_they_are(crew: _Crew[int, None]) -> None:
    seat = crew._seats[0]
    for _ in range(START_TRIES):
        assert not seat.refused
        crew._lost(seat, LostProcessError("died"))
        crew._deaths[0].due = 0.0
        crew._judge_deaths()
    assert seat.refused


def test_a_machine_is_asked_once_for_all_that_died_there(crew: _Crew[int, None]) -> None:
    for number, seat in enumerate(crew._seats):
        lost = [Handed(number)]
        crew._deaths.append(Death(seat, place("gone"), lost, False, False, due=0.0))
    crew._judge_deaths()
    assert isinstance(crew._cluster, PlainCluster)
    assert crew._cluster.asked == ["gone"]
    assert crew._queue.rest()[:4] == [0, 1, 2, 3]
    assert crew.failures == []


def test_late_messages_are_taken_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, Any] = {}
    taken: list[bool] = []

    def call(process: str, method: str, stopping: bool) -> str:
        taken.append(stopping)
        return f"take {len(taken)}"

    def answer(waited: str) -> Any:
        if isinstance(answers[waited], Exception):
            raise answers[waited]
        return answers[waited]

    monkeypatch.setattr(inbox, "start_process", lambda *_, **options: options["restarts"])
    monkeypatch.setattr(inbox, "call", call)
    monkeypatch.setattr(inbox, "answer", answer)
    monkeypatch.setattr(inbox, "first_done", lambda calls, seconds: [waited for waited in calls if waited in answers])
    box = inbox.Inbox()
    assert box.mailbox == -1, "it is started again"
    assert box.take(False) == box.take(False) == []
    answers["take 1"] = ["late"]
    assert box.take(False) == ["late"]
    answers |= {"take 2": LostProcessError("killed"), "take 3": ["more"]}
    assert box.take(True) == []
    assert box.take(True) == ["more"]
    assert taken == [False, True, True]


def test_a_courier_ends_when_all_is_posted() -> None:
    posting, may_end = threading.Event(), threading.Event()
    posted: list[int] = []

    def post(messages: list[int]) -> bool:
        if messages:
            posting.set()
            may_end.wait(10)
            posted.extend(messages)
        return False

    courier = Courier(post, nothing)
    with courier.work():
        courier.send(1)
        assert posting.wait(10)  # in the courier's thread
        threading.Timer(0.3, may_end.set).start()
    assert posted == [1]


def test_arrays_go_when_their_room_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seats, "share_array", lambda array: array)
    made: list[str] = []

    def shared(key: str, n_bytes: int) -> Shared:
        def make() -> dict[str, np.ndarray]:
            made.append(key)
            return {"x": np.zeros(n_bytes, np.uint8)}

        return Shared(key, make)

    arrays = SharedArrays(PlainCluster(node("a", store=100)))
    for key in ("a", "b", "a", "b"):
        assert arrays.provide(shared(key, 40), set()) is not None
    assert made == ["a", "b"]
    assert arrays.provide(shared("c", 60), {"b"}) is not None  # a goes
    assert arrays.provide(shared("a", 40), {"b", "c"}) is None
    assert arrays.provide(shared("a", 40), {"c"}) is not None  # made once for both
    assert made == ["a", "b", "c", "a"]


@pytest.mark.parametrize(
    ("outcomes", "requested", "expected"),
    [
        ({0: ("returned", 0), 1: ("returned", 1)}, 1, 1),
        ({0: ("returned", 0)}, 1, KeyboardInterrupt),
        ({0: ("lost", "process 1 died")}, 1, KeyboardInterrupt),
        ({0: ("failed", WriteError("/there", "full", "make room"))}, 0, WriteError),
    ],
)
def test_what_comes_of_a_gang(outcomes: dict[int, tuple[str, Any]], requested: int, expected: Any) -> None:
    stop = GracefulStop("stopping")
    stop.requested = requested
    gang = _ClusterGang(PlainCluster(), 2, Size(), b"", stop)
    gang._outcomes = outcomes
    if isinstance(expected, int):
        assert gang.result() == expected
    else:
        with pytest.raises(expected):
            gang.result()


def test_a_gang_waits_for_room_until_it_is_asked_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = GracefulStop("stopping")
    monkeypatch.setattr("hist_cache.cluster.gang.reserve", lambda *_: (None, "ready"))

    def first_done(calls: list[Any], seconds: float) -> list[Any]:
        stop.requested += 1
        time.sleep(0.001)
        return []

    monkeypatch.setattr("hist_cache.cluster.gang.first_done", first_done)
    with pytest.raises(KeyboardInterrupt):
        _ClusterGang(PlainCluster(), 2, Size(), b"", stop).find_room()


def test_a_gang_that_cannot_be_set_up_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*_: Any) -> None:
        raise NEVER

    for name in ("Inbox", "start_process", "place_of", "call"):
        monkeypatch.setattr(f"hist_cache.cluster.gang.{name}", lambda *_, **__: SimpleNamespace(mailbox=None))
    monkeypatch.setattr(_ClusterGang, "_answers", lose)
    with pytest.raises(HistError, match=r"^a: hist-cache cannot be started there") as caught:
        _ClusterGang(PlainCluster(node("a")), 2, Size(), b"", GracefulStop("stopping")).start()
    assert not isinstance(caught.value, LostRankError)


def test_a_head_that_is_silent_for_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    cluster = Cluster(address, own=True, command="hist-extract --dataset demo")
    cluster._checked, cluster._silent_since = 0.0, time.monotonic() - 100
    with pytest.raises(
        HistError, match="is kept: start a cluster again, then hist-extract --dataset demo does the rest"
    ):
        cluster.check_head()
