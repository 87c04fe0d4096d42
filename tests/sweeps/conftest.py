"""Tiny slides in a cache, and a PostgreSQL server of the tests' own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import extract.cli
from tests.conftest import TINY_ENCODER, write_slide

SMALL = ("--width", 8, "--depth", 1, "--epochs", 3, "--batch-size", 16, "--n-genes", 20, "--lr", 1e-3, "--split",
         "loso", "--folds", 2)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models are slower on several threads, above all beside other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tiny slides, extracted as dataset tiny."""
    where = tmp_path_factory.mktemp("sweep")
    for i in range(1, 5):
        write_slide(where / "hest", f"TINY{i}", seed=i)
    code = extract.cli.main(
        ["--ids", "TINY1-4", "--dataset", "tiny", "--data-root", str(where / "hest"), "--cache", str(where / "cache"),
         "--encoder", TINY_ENCODER, "--random-weights", "--neighbors", "6,18"]
    )  # fmt: skip
    assert code == 0
    return where / "cache"


def postgres_programs() -> Path | None:
    """Where initdb and pg_ctl are: on the path, or where Debian keeps them."""
    program = shutil.which("pg_ctl")
    folders = [
        *([Path(program).resolve().parent] if program else []),
        *sorted(Path("/usr/lib/postgresql").glob("*/bin")),
    ]
    return next((f for f in reversed(folders) if (f / "initdb").exists() and (f / "pg_ctl").exists()), None)


@dataclass(frozen=True)
class Server:
    """A PostgreSQL of the tests' own: its URL, and what stops and starts it."""

    url: str
    stop: Callable[[], None]
    start: Callable[[], None]

    def query(self, text: str) -> None:
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(text.encode())


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A real PostgreSQL, started for the tests in a folder of its own."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL installed (Debian: apt-get install postgresql)")
    user = None
    if os.geteuid() == 0:  # the server refuses to run as root
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("no user postgres to run PostgreSQL as: it refuses root")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="hist-pg-"))  # short: a socket's path may not be long
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)

    def run(program: str, *argv: object) -> None:
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
        with (folder.parent / f"{folder.name}.log").open("a") as log:
            subprocess.run(
                [str(programs / program), *map(str, argv)], check=True, cwd="/", stdout=log, stderr=log, **who
            )

    data = folder / "data"
    try:
        run("initdb", "-D", data, "-U", "sweeper", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"

        def start() -> None:
            run("pg_ctl", "-D", data, "-w", "-t", 60, "-l", folder / "server.log", "-o", options, "start")

        def stop() -> None:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")

        start()
        try:
            yield Server(f"postgresql://sweeper@127.0.0.1:{port}/postgres", stop, start)
        finally:
            stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        (folder.parent / f"{folder.name}.log").unlink(missing_ok=True)


@pytest.fixture(scope="session")
def postgres(postgres_server: Server) -> str:
    """The URL of a real PostgreSQL."""
    return postgres_server.url


def wait_for(what: object, seconds: float = 120) -> None:
    """Until `what()` holds."""
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
