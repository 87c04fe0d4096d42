"""How long the fuzzers search, longer with `FUZZ_FACTOR=20 pytest -m fuzz`; and what a command may end in."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable

from hypothesis import HealthCheck, settings

from hist_cache.options import UNEXPECTED

USUAL_FACTOR = 0.3
FACTOR = float(os.environ.get("FUZZ_FACTOR", USUAL_FACTOR))


def fuzz(examples: int) -> settings:
    """Settings of a fuzzer that tries so many examples, times `FUZZ_FACTOR`."""
    return settings(
        max_examples=max(1, round(examples * FACTOR)),
        deadline=None,
        derandomize=FACTOR == USUAL_FACTOR,  # CI tries the same ones every time; a longer search tries new ones
        suppress_health_check=list(HealthCheck),
    )


def outcome(main: Callable[[list[str]], int], *argv: object) -> tuple[int, str]:
    """Run a command in this process: (exit code, all it printed), after checking that it ended as a user may see it.

    It ends with 0, or with 1 or 2 and one line for the error, which for a slide is a warning. Nothing is raised.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code = main([str(a) for a in argv])
        except SystemExit as stop:
            code = int(stop.code or 0)
    text = printed.getvalue()
    assert code in (0, 1, 2), text
    for never in ("Traceback", UNEXPECTED, "\x1b", "\x00"):
        assert never not in text, text
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    failed_slides = "slides failed:" in text
    assert len(errors) == (code != 0 and not failed_slides), text
    assert all(len(line) > len("error: ") + 10 for line in errors), text
    return code, text
