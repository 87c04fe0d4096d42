"""Kill loops: a command is killed again and again while it works, and then goes on to its end."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

from tests.commands import Command

KILLS = int(os.environ.get("KILLS", "10"))  # KILLS=200 pytest -k killed tries longer


def kill_again_and_again(start: Callable[[], Command], progress: Callable[[], int], most: int, kills: int) -> str:
    """Kill a command as often as asked for, then let it end; returns what it printed then.

    Args:
        start: Starts it.
        progress: Counts what it has written so far.
        most: It is killed when it has written so much more at most.
        kills: How often.
    """
    chance = random.Random(kills)
    for _ in range(kills):
        process = start()
        wanted, deadline = progress() + chance.randint(1, most), time.monotonic() + 60
        while progress() < wanted:
            assert process.poll() is None, f"it ended before it could be killed: {process.communicate()[0]}"
            assert time.monotonic() < deadline, "it hangs"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = start()
    text, _ = process.communicate()
    assert process.returncode == 0, text
    assert "Traceback" not in text
    return text
