"""The variables by which Ray is configured. It reads them when it is imported and when it is started."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hist_cache.cluster.checks import has_token, is_loopback, somebody_answers, split_address

_UNROUTED = ("192.0.2.1", 9)  # an address of documentation (RFC 5737)


@contextmanager
def ray_environment(address: str | None) -> Iterator[None]:
    """Set the variables by which Ray is configured, before it is imported or started."""
    variables = {
        "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to Ray's makers
        "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # Ray prints of each death in its own words
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_NUM_REDIS_GET_RETRIES": "2",  # a wrong token stays wrong
    }
    if address is None:
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        variables["RAY_gcs_rpc_server_reconnect_timeout_s"] = "20"  # it does not come back, so nobody waits for it
    elif has_token():
        variables["RAY_AUTH_MODE"] = "token"
    if address is None or _is_on_loopback_alone(*split_address(address)):
        variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else Ray takes this machine's address in the network
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _is_on_loopback_alone(host: str, port: int) -> bool:
    """Whether a cluster of this machine cannot be reached by its address in the network, which Ray would use."""
    if not is_loopback(host):
        return False
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(_UNROUTED)  # nothing is sent; it tells by which address this machine is known
        return not somebody_answers(probe.getsockname()[0], port, 0.5)
    return True


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Drop what a library writes to standard error past Python; what is wrong comes as an exception too."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Keep what SIGTERM does here, which Ray replaces by an end without a word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
