"""A Slurm for the tests of the recipes in docs/scale, and machines of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scale.machines import Machines, started_machines
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


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """A head without cores and two nodes of one core, which end with the module's tests."""
    with started_machines() as started:
        yield started
