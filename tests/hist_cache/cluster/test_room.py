"""How many workers there are and what each takes, and which options say so."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from extract.options import ExtractOptions
from hist_cache.cluster import room
from hist_cache.cluster.facts import Node
from hist_cache.cluster.room import Size, check_workers_room, decide
from hist_cache.engine import open_engine
from hist_cache.errors import InputError
from hist_cache.options import parse
from tests.hist_cache.cluster.doubles import PlainCluster, node


def test_what_a_worker_takes() -> None:
    nodes = [node("a", cpus=8, gpus=2), node("b", cpus=3)]
    assert [Size(2).places(nodes), Size(2, 1).places(nodes), Size(16).places(nodes)] == [5, 2, 0]
    assert [str(Size(1)), str(Size(2)), str(Size(2, 1))] == ["1 core", "2 cores", "1 GPU"]


@pytest.mark.parametrize(
    ("asked", "nodes", "decided"),
    [
        ((None, 1, None), [node("a", cpus=8, gpus=2), node("b", cpus=8)], (2, Size(1, 1))),
        ((None, 2, 0), [node("a", cpus=8, gpus=2), node("b", cpus=8)], (8, Size(2, 0))),
        ((5, 1, None), [node("a", cpus=2)], (5, Size(1, 0))),
        ((16, 1, 1), [], (16, Size(1, 1))),  # machines come for those that are asked for
    ],
)
def test_what_is_decided_at_once(
    asked: tuple[int | None, int, int | None], nodes: list[Node], decided: tuple[int, Size]
) -> None:
    assert decide(PlainCluster(*nodes), *asked) == decided


@pytest.mark.parametrize("workers", [None, 3])
def test_a_machine_to_decide_by_is_waited_for(
    workers: int | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = PlainCluster(node("head", cpus=0))
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            cluster.there.append(node("a", cpus=8, gpus=2))

    monkeypatch.setattr(room.time, "sleep", sleep)
    monkeypatch.setattr(room, "SAID_S", -1.0)
    with caplog.at_level(logging.INFO):
        assert decide(cluster, workers, 4, None) == (workers or 2, Size(4, 1))
    assert len(waits) == 3
    assert [line.split(" (")[0] for line in caplog.messages] == ["waiting for a machine with 4 cores"]


def test_ray_of_this_machine_alone_does_not_grow() -> None:
    own = PlainCluster(node("a", cpus=2), own=True)
    check_workers_room(own, Size(1), 2)
    with pytest.raises(
        InputError, match=r"a worker takes 64 cores, and Ray on this machine has room for 0 \(1 machine"
    ):
        decide(own, None, 64, None)
    with pytest.raises(InputError, match="a worker takes 1 GPU"):
        decide(own, 2, 1, 1)
    with pytest.raises(InputError, match="8 processes on one batch take 1 core each"):
        check_workers_room(own, Size(1), 8)
    check_workers_room(PlainCluster(), Size(64), 8)


@pytest.mark.parametrize(
    ("words", "variable", "expected"),
    [
        ([], "", (None, None)),
        ([], "node-1:6379", ("node-1:6379", None)),
        (["--address", "node-2:6379"], "node-1:6379", ("node-2:6379", None)),
        (["--device", "cpu"], "", (None, 0)),
        (["--gpus-per-worker", "2"], "", (None, 2)),
    ],
)
def test_where_the_cluster_is_and_what_of_it(
    words: list[str], variable: str, expected: tuple[str | None, int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []

    @contextmanager
    def open_ray(address: Any, workers: Any, cpus: Any, gpus: Any, insecure: Any, command: Any) -> Iterator[None]:
        found.append((address, gpus))
        assert "--engine ray" in command
        yield

    monkeypatch.setattr("hist_cache.cluster.engine.open_ray", open_ray)
    monkeypatch.setattr("hist_cache.engine.require", lambda *_: None)
    monkeypatch.setenv("RAY_ADDRESS", variable)
    with open_engine(parse(ExtractOptions, "hist-extract", "", ["--dataset", "demo", "--engine", "ray", *words])):
        pass
    assert found == [expected]


def test_a_cpu_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hist_cache.engine.require", lambda *_: None)
    words = ["--dataset", "demo", "--engine", "ray", "--device", "cpu", "--gpus-per-worker", "1"]
    with pytest.raises(InputError, match="--gpus-per-worker 1: workers take no GPU with --device cpu"):
        open_engine(parse(ExtractOptions, "hist-extract", "", words)).__enter__()
