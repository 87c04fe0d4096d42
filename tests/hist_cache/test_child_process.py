"""Programs in processes of their own: whatever becomes of them, who asks gets an answer or one error."""

from __future__ import annotations

from pathlib import Path

import pytest

from hist_cache import child_process
from hist_cache.child_process import ChildAnswerError, ChildEndedError, ChildProcess

MEMORY = 1 << 30


def program(folder: Path, start: str = "pass", respond: str = "b''") -> Path:
    file = folder / "program.py"
    file.write_text(f"import os, time\ndef main(*arguments):\n    {start}\n    return lambda request: {respond}\n")
    return file


def test_requests_and_answers_are_as_they_were_sent(tmp_path: Path) -> None:
    child = ChildProcess(program(tmp_path, respond="repr((arguments, request)).encode()"), "a b", memory=MEMORY)
    for request in ("tab\tline\n\u00e4\udc80", [1, 2]):
        assert child.ask(request, 60).decode() == repr((("a b",), request))
    child.close()


def test_an_error_of_the_program_is_told_and_it_lives_on(tmp_path: Path) -> None:
    child = ChildProcess(program(tmp_path, respond="str(1 // request).encode()"), memory=MEMORY)
    with pytest.raises(ChildAnswerError, match="division"):
        child.ask(0, 60)
    assert child.ask(1, 60) == b"1"
    child.close()


@pytest.mark.parametrize(
    ("respond", "says"),
    [
        ("os.abort()", "^ends with SIGABRT$"),
        ("os._exit(3)", "^ends with code 3$"),
        ("time.sleep(60)", r"^does not answer within 0\.2 s$"),
    ],
)
def test_how_it_ended(tmp_path: Path, respond: str, says: str) -> None:
    child = ChildProcess(program(tmp_path, respond=respond), memory=MEMORY)
    with pytest.raises(ChildEndedError, match=says):
        child.ask(0, 0.2 if "sleep" in respond else 60)
    child.close()


def test_starting_has_its_own_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = ChildProcess(program(tmp_path, start="time.sleep(0.5)", respond="b'late'"), memory=MEMORY)
    assert child.ask(0, 0.4) == b"late", "the time that the start takes does not count"
    child.close()
    with pytest.raises(ChildAnswerError, match="no such library"):
        ChildProcess(program(tmp_path, start="raise ImportError('no such library')"), memory=MEMORY)
    monkeypatch.setattr(child_process, "CHILD_START_S", 0.3)
    with pytest.raises(ChildEndedError, match=r"^does not start: it does not answer within 0\.3 s$"):
        ChildProcess(program(tmp_path, start="time.sleep(60)"), memory=MEMORY)


def test_libraries_have_one_thread_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of memory counts what OpenBLAS reserves for each of a node's cores."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "64")
    child = ChildProcess(program(tmp_path, respond="os.environ[request].encode()"), memory=MEMORY)
    assert child.ask("OPENBLAS_NUM_THREADS", 60) == b"1"
    child.close()
