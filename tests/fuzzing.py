"""How long the fuzzers search: a little in CI, longer with `FUZZ_FACTOR=20 pytest -m fuzz`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

FACTOR = float(os.environ.get("FUZZ_FACTOR", "1"))


def fuzz(examples: int) -> settings:
    """Settings of a fuzzer that tries so many examples, times `FUZZ_FACTOR`."""
    return settings(
        max_examples=max(1, round(examples * FACTOR)),
        deadline=None,
        derandomize=FACTOR == 1,  # CI tries the same ones every time; a longer search tries new ones
        suppress_health_check=list(HealthCheck),
    )
