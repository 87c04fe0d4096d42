"""What a process of `hist_cache.child_process` runs: it loads a program and answers each line with what this returns.

It is started by its path and imports nothing of ours, so it runs wherever this file lies.
"""

from __future__ import annotations

import json
import runpy
import signal
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

ANSWER_HEAD = struct.Struct("<?q")  # of an answer: whether it is the text of an error, and its bytes


def limit_memory(memory: int) -> None:
    """Limit the addresses that this process may take, in bytes; on Windows there is no such limit."""
    with suppress(ImportError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[1]
        if limit == resource.RLIM_INFINITY or memory < limit:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def serve_program(program: str, arguments: list[str]) -> None:
    """Run a program; the first answer is empty, or tells what its start raised.

    Args:
        program: A Python file. Its `main` takes the arguments, and returns a function from a request to an answer.
        arguments: Those of `main`.
    """
    out = sys.stdout.buffer

    def answer(make: Callable[[], Any]) -> Any:
        made: Any = None
        try:
            failed, made = False, make()
            data = made if isinstance(made, bytes | memoryview) else b""
        except Exception as error:
            failed, data = True, (str(error) or type(error).__name__).encode(errors="replace")
        out.write(ANSWER_HEAD.pack(failed, len(data)))
        out.write(data)
        out.flush()
        return made

    respond = answer(lambda: runpy.run_path(program)["main"](*arguments))
    for line in sys.stdin:
        answer(partial(respond, json.loads(line)))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks decides when this one ends
    limit_memory(int(sys.argv[2]))
    serve_program(sys.argv[1], sys.argv[3:])
