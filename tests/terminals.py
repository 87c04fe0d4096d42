"""A terminal of a given width, and what a script shows on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from tests.conftest import REPOSITORY

COLOURS, MOVES = re.compile(r"\x1b\[[0-9;]*m"), re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def shown_in_terminal(script: str, columns: int, rows: int = 24) -> list[str]:
    """Run a script on a terminal of this size; returns all lines that were shown, also those that were replaced."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1"}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    content = b""
    try:
        while part := os.read(ours, 65536):
            content += part
    except OSError:  # what Linux answers when the other end is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0, content.decode()
    lines = re.split(r"[\r\n]+", MOVES.sub("\n", COLOURS.sub("", content.decode())))
    return [line.rstrip() for line in lines if line.strip()]
