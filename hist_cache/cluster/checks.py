"""What can be known of a cluster before work is given to it: its address, its token, its versions, its memory."""

from __future__ import annotations

import ipaddress
import os
import platform
import socket
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from hist_cache.console import size
from hist_cache.errors import HistError, InputError

ANSWER_S = 12.0  # an address where nobody answers for so long is wrong
LONGEST_TEMP_DIR = 40  # bytes; below it Ray makes sockets with up to 65 more, and the system allows 107
SMALLEST_STORE = 80 * 2**20  # bytes; Ray refuses less than 75 MiB
TOKEN, TOKEN_PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
TOKEN_VARIABLES = (TOKEN, TOKEN_PATH)
AUTH_FILE = Path("~/.ray/auth_token")


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of an address.

    Raises:
        InputError: It is not HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 or "/" in host:
        raise InputError(
            f"--address {address}: not HOST:PORT, as in node-1:6379; name the cluster (here or by $RAY_ADDRESS)"
        )
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's own loopback, by all its addresses; a name that nobody knows is not."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(address.split("%")[0]).is_loopback for address in found)


def somebody_answers(host: str, port: int, seconds: float) -> bool:
    """Whether anybody listens there; where the connection is refused, it is tried again until the time is over."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        with suppress(OSError), socket.create_connection((host, port), timeout=left):
            return True
        time.sleep(min(0.5, max(end - time.monotonic(), 0)))
    return False


def has_token() -> bool:
    """Whether a token is there, in a variable or in the file that Ray reads."""
    return bool(os.environ.get(TOKEN)) or _token_file().is_file()


def _token_file() -> Path:
    named = os.environ.get(TOKEN_PATH)
    return (Path(named) if named else AUTH_FILE).expanduser()


def check_address(address: str, insecure: bool) -> None:
    """Check that a cluster answers at an address, and that a token is there where it is on another machine.

    A cluster that asks for no token takes one too: that it does ask is up to who has started it.

    Raises:
        InputError: It is no address, or without a token not on this machine, or the token's file is not there.
        HistError: Nobody answers.
    """
    host, port = split_address(address)
    if os.environ.get(TOKEN_PATH) and not has_token():
        raise InputError(f"{_token_file()}: no such file; {TOKEN_PATH} names that of the cluster's token")
    if not (insecure or has_token() or is_loopback(host)):
        variables = " or ".join(TOKEN_VARIABLES)
        raise InputError(
            f"--address {address}: no token, and whoever reaches a cluster without one runs code as you there; "
            f"start it with RAY_AUTH_MODE=token and set {variables}, or add --insecure"
        )
    if not somebody_answers(host, port, ANSWER_S):
        raise HistError(f"--address {address}: nobody answers there; is the head of the cluster running?")


def check_temp_dir(folder: Path) -> None:
    """Check that Ray can make its sockets in a folder.

    Raises:
        InputError: Its path is too long.
    """
    if (length := len(os.fsencode(folder))) > LONGEST_TEMP_DIR:
        raise InputError(
            f"{folder}: {length} bytes are too long for Ray's sockets ({LONGEST_TEMP_DIR} at most); set TMPDIR to a "
            "short folder such as /tmp"
        )


def store_bytes(free_memory: float, free_shm: float) -> int:
    """How large the object store of this machine shall be, bytes: a third of what is free, within /dev/shm.

    Raises:
        HistError: There is too little of it.
    """
    room = int(min(free_memory * 0.3, free_shm * 0.9))
    if room < SMALLEST_STORE:
        raise HistError(
            f"Ray needs {size(SMALLEST_STORE)} for shared arrays, and {size(room)} are there (a third of the free "
            f"memory, {size(free_memory)}, within /dev/shm, {size(free_shm)})"
        )
    return room


def check_store(wanted: int, there: int, host: str) -> None:
    """Check that shared arrays fit into the memory that a machine has for them.

    Args:
        wanted: Bytes of the arrays.
        there: Bytes of the object store.
        host: Its machine.

    Raises:
        HistError: They do not.
    """
    if wanted > there:
        raise HistError(
            f"{host}: {size(wanted)} of arrays are to be shared ({wanted:,} bytes), and its object store holds "
            f"{size(there)} ({there:,} bytes); start Ray with more --object-store-memory, and /dev/shm as large"
        )


def interface_of(address: str) -> str | None:
    """The name of this machine's network interface that has an address; None where none has."""
    every = psutil.net_if_addrs().items()
    return next((name for name, own in every if any(entry.address == address for entry in own)), None)


def own_versions() -> dict[str, str]:
    """Versions that all machines must have in common, by name."""
    versions = {"Python": platform.python_version()}
    for package in ("hist-cache", "torch", "timm", "ray"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # the source is used as it is
            versions[package] = "not installed"
    return versions


def version_difference(own: dict[str, str], theirs: dict[str, str]) -> str | None:
    """How another machine's versions differ from those here, in one line; None where they do not."""
    different = [f"{name} {theirs.get(name)} there, {own[name]} here" for name in own if own[name] != theirs.get(name)]
    return f"other versions: {', '.join(different)}" if different else None
