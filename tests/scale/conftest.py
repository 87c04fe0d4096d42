"""A Slurm for the tests of the recipes in docs/scale."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scale.slurm import Slurm, reason_to_skip


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """A real Slurm of three nodes on this machine, which ends with the module's tests."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    cluster = Slurm()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
