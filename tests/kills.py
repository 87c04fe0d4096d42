"""Commands that are stopped at random points: killed after a while or just before a file is touched, or told to stop.

`KILLS=200 pytest tests/test_kills.py` kills each command so often; `KILL_SEED` chooses other points.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.commands import Command

KILLS = int(os.environ.get("KILLS", "4"))
SEED = int(os.environ.get("KILL_SEED", "0"))
TOUCHES = 60  # about as many times as one of these commands touches a file below its folder
# Before the command: count what it opens, renames and removes below a folder, and die just before the n-th of them.
DIE_AT_A_TOUCH = """import os, signal, sys
_left, _folder = int(sys.argv.pop()), sys.argv.pop()
def _die(event, args):
    global _left
    if event in ("open", "os.rename", "os.remove", "os.mkdir") and _folder in str(args[0]):
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(_die)
"""

Start = Callable[..., Command]


def run_to_the_end(start: Start, script: str, argv: Sequence[object]) -> float:
    """Run a command, which must succeed; returns the seconds that it took."""
    began = time.monotonic()
    command = start(script, *argv)
    text, _ = command.communicate()
    assert command.returncode == 0, text
    return time.monotonic() - began


def run_and_stop(
    start: Start, script: str, argv: Sequence[object], folder: Path, rng: random.Random, within: float
) -> bool:
    """Run a command and stop it somewhere; returns whether it was stopped before its end."""
    how = rng.choice(["touch", "touch", "time", "time", "SIGINT", "SIGTERM"])
    if how == "touch":
        command = start(DIE_AT_A_TOUCH + script, *argv, folder, rng.randint(1, TOUCHES))
    else:
        command = start(script, *argv)
        number = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}.get(how, signal.SIGKILL)
        threading.Timer(rng.uniform(0, within), command.send_signal, [number]).start()
    text, _ = command.communicate()
    assert "Traceback" not in text, f"{how}: {text}"
    assert command.returncode in (0, 130, 143, -signal.SIGTERM, -signal.SIGKILL), f"{how}: {command.returncode}: {text}"
    return command.returncode != 0


def kill_loop(
    start: Start,
    script: str,
    argv: Sequence[object],
    folder: Path,
    read: Callable[[Path], Any],
    check: Callable[[], Any],
) -> None:
    """Stop a command again and again; in the end its folder must hold what an unbroken run leaves.

    Args:
        start: The fixture `start_command`.
        script: The command.
        argv: Its arguments.
        folder: All that it writes.
        read: What of the folder must be the same in the end.
        check: Called after each stop: nothing half-written may have a final name.
    """
    rng = random.Random(SEED)
    within = run_to_the_end(start, script, argv)
    expected = read(folder)
    kills = 0
    while kills < KILLS:
        shutil.rmtree(folder, ignore_errors=True)
        while kills < KILLS and run_and_stop(start, script, argv, folder, rng, within):
            kills += 1
            check()
        run_to_the_end(start, script, argv)
        assert read(folder) == expected, f"after {kills} stops, KILL_SEED={SEED}"


def kill_as_it_writes(start: Callable[[], Command], progress: Callable[[], int], most: int, kills: int) -> str:
    """Kill a command again and again on its way, without starting over, then let it end; returns what it printed then.

    Args:
        start: Starts it.
        progress: Counts what it has written so far.
        most: It is killed when it has written so much more at most.
        kills: How often, unless it is done before.
    """
    rng = random.Random(SEED)
    done = 0
    while done < kills:
        command = start()
        wanted, deadline = progress() + rng.randint(1, most), time.monotonic() + 60
        while progress() < wanted and command.poll() is None:
            assert time.monotonic() < deadline, "it hangs"
            time.sleep(0.002)
        if command.poll() is not None:  # orphaned workers get something done too
            assert command.returncode == 0, command.communicate()[0]
            break
        command.send_signal(signal.SIGKILL)
        command.wait()
        done += 1
    assert done >= min(kills, 4)
    command = start()
    text, _ = command.communicate()
    assert command.returncode == 0, text
    assert "Traceback" not in text
    return text
