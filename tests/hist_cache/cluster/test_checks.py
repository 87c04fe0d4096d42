"""What is checked of a cluster before anything is started there, and what its processes are told."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hist_cache.cluster import checks
from hist_cache.cluster.checks import (
    check_address,
    check_temp_dir,
    interface_of,
    own_versions,
    split_address,
    store_bytes,
    version_difference,
)
from hist_cache.cluster.facts import LostProcessError, Node, ProcessPlace, why_never_began
from hist_cache.cluster.ray_cluster import HOME
from hist_cache.errors import HistError, InputError


@pytest.fixture(autouse=True)
def without_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in checks.TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(checks, "AUTH_FILE", tmp_path / "no token")
    monkeypatch.setattr(checks, "ANSWER_S", 0.3)


@pytest.mark.parametrize("address", ["auto", "local", "ray://node:10001", "node-1", "node-1:", ":6379", "node-1:99999"])
def test_a_cluster_must_be_named(address: str) -> None:
    with pytest.raises(InputError, match=r"not HOST:PORT"):
        split_address(address)


def test_addresses() -> None:
    assert split_address("node-1:6379") == ("node-1", 6379)
    assert split_address("[::1]:6379") == ("::1", 6379)


def test_an_address_beyond_this_machine_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no token"):
        check_address("192.0.2.77:6379", insecure=False)
    with pytest.raises(HistError, match="nobody answers"):  # past the token
        check_address("192.0.2.77:6379", insecure=True)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    with pytest.raises(HistError, match="nobody answers"):
        check_address("192.0.2.77:6379", insecure=False)


def test_a_token_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(InputError, match=r"/token: no such file; RAY_AUTH_TOKEN_PATH names"):
        check_address("127.0.0.1:6379", insecure=False)
    (tmp_path / "token").write_text("a" * 64)
    with pytest.raises(HistError, match="nobody answers"):  # past the token
        check_address("192.0.2.77:6379", insecure=False)


def test_who_answers_on_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check_address(address, insecure=False)
    with pytest.raises(HistError, match="nobody answers"):
        check_address(address, insecure=False)


def test_folders_of_sockets() -> None:
    check_temp_dir(Path("/tmp/hist-ray-123456-abcdefgh"))
    with pytest.raises(InputError, match="set TMPDIR to a short folder"):
        check_temp_dir(Path("/tmp") / ("a" * 60))


def test_room_for_arrays() -> None:
    assert store_bytes(10e9, float("inf")) == int(3e9)
    assert store_bytes(10e9, 1e9) == int(9e8)
    with pytest.raises(HistError, match=r"/dev/shm, 67\.1 MB"):
        store_bytes(10e9, 64 * 2**20)


def test_this_source_is_what_other_machines_import() -> None:
    assert (HOME / "hist_cache" / "__init__.py").exists()


def test_interfaces() -> None:
    loopback = interface_of("127.0.0.1")
    assert loopback in {name for _, name in socket.if_nameindex()}
    assert interface_of("192.0.2.77") is None


def test_where_a_process_never_began() -> None:
    error = LostProcessError("Traceback:\nModuleNotFoundError: no hist_cache\n", never_began=True, address="10.0.0.2")
    nodes = [Node(name, name, (address, 1), 1, 0, 0) for name, address in (("a", "10.0.0.1"), ("b", "10.0.0.2"))]
    why = "hist-cache cannot be started there (ModuleNotFoundError: no hist_cache)"
    assert why_never_began(error, nodes) == f"b: {why}"
    assert why_never_began(error, nodes[:1]) == f"10.0.0.2: {why}"
    error.address = None
    assert why_never_began(error, nodes) == f"a machine of the cluster: {why}"


def test_versions() -> None:
    assert set(own_versions()) == {"Python", "hist-cache", "torch", "timm", "ray"}
    own = {"Python": "3.11.9", "torch": "2.9.0"}
    assert version_difference(own, dict(own)) is None
    assert version_difference(own, own | {"torch": "2.8.0"}) == "other versions: torch 2.8.0 there, 2.9.0 here"


def test_what_a_gang_knows_of_itself() -> None:
    gang = pytest.importorskip("hist_cache.cluster.gang")
    places = [ProcessPlace(node, node, "10.0.0.1", 1, (gpu,), {}) for node, gpu in (("a", "0"), ("a", "3"), ("b", "1"))]
    told = gang.gang_environments(places, "10.0.0.1", 29500, 4)
    assert [e["RANK"] for e in told] == ["0", "1", "2"]
    assert [e["LOCAL_RANK"] for e in told] == ["0", "1", "0"]
    assert [e["LOCAL_WORLD_SIZE"] for e in told] == ["2", "2", "1"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in told] == ["0,3", "0,3", "1"]
    assert {(e["WORLD_SIZE"], e["MASTER_ADDR"], e["MASTER_PORT"]) for e in told} == {("3", "10.0.0.1", "29500")}
