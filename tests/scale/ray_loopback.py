"""Ray on loopback alone: Ray itself takes the machine's address in the network wherever it is told 127.0.0.1."""

from __future__ import annotations

from typing import Any

LOOPBACK = "127.0.0.1"


def loopback(ray_params: Any, head: bool) -> None:
    """Let `ray start` listen on loopback only; `$RAY_START_HOOK` names this function."""
    believe_localhost()
    ray_params.node_ip_address = LOOPBACK


def believe_localhost() -> None:
    """Let Ray connect to 127.0.0.1 where it is told so."""
    import ray._private.services as services

    services.resolve_ip_for_localhost = lambda host: host
