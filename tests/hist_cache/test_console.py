"""What is shown of log messages and progress: in a command everything, elsewhere nothing."""

import subprocess
import sys

import pytest

from hist_cache.console import Meter, duration, live_line, printable, size
from tests.terminals import shown_in_terminal

LOG = """
import logging
from hist_cache.console import hush, progress, show_logs
log = logging.getLogger("hist_cache.lattice")
def work():
    log.info("3 slides [bold]")
    log.warning("SPA1: no pixel size")
    with progress("read", 2, "slides") as meter:
        meter.advance()
    print(meter.done)
"""


def output(script: str) -> tuple[str, str]:
    result = subprocess.run([sys.executable, "-c", LOG + script], capture_output=True, text=True, check=True)
    return result.stdout, result.stderr


def test_a_command_shows_information_and_warnings() -> None:
    assert output("show_logs(); show_logs(); work()") == ("3 slides [bold]\n1.0\n", "warning: SPA1: no pixel size\n")


def test_a_command_shows_progress_as_lines_without_a_terminal() -> None:
    text, _ = output("import hist_cache.console as c; c.PLAIN_EVERY_S = 0; show_logs(); work()")
    assert "read: 1/2 slides, " in text
    assert "/s, ETA " in text


def test_without_a_command_nothing_is_shown_on_standard_output() -> None:
    assert output("work()")[0] == "1.0\n"


def test_a_hushed_process_shows_nothing() -> None:
    assert output("hush(); work()") == ("1.0\n", "")
    assert output("show_logs(); hush(); work()") == ("1.0\n", "")


def test_the_live_line_keeps_count_rate_and_time_left_in_80_columns() -> None:
    script = (
        LOG.partition("log =")[0]
        + """
import time
show_logs()
with progress("folds", 24, "folds") as meter:
    for i in range(3):
        meter.advance(1, f"full-lora11-1a2b3c4d-5e6f7a8b fold {i}: epoch 117, validation MSE 0.1234")
        time.sleep(0.15)
print("done")
"""
    )
    lines = shown_in_terminal(script, columns=80)
    frames = [line for line in lines if "folds" in line]
    assert lines[-1] == "done"
    assert all(len(line) <= 80 for line in lines)
    assert {line.split(" folds, ")[0] for line in frames} >= {"1/24", "2/24", "3/24"}
    for line in frames[1:]:
        assert "folds/s, ETA " in line or "folds/min, ETA " in line
    assert any("━" in line and line.endswith("…") for line in frames)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_the_live_line_of_any_width(width: int) -> None:
    meter = Meter("extract", 123_456, "crops")
    meter.done, meter.note = 61_728, "SPA1, 12 % of the time waiting for pixels"
    meter.started -= 100
    line = live_line(meter, width)
    assert len(line) <= width
    if width >= 60:
        assert line.startswith("extract 61,728/123,456 crops, 617.3 crops/s, ETA 1 min 40 s")
    if width == 200:
        assert line.endswith(f" {'━' * 6}{'╌' * 6}, {meter.note}, 1 min 40 s so far")
    assert live_line(meter, width, ascii_only=True).isascii()


def test_names_move_no_cursor_and_break_no_line() -> None:
    assert printable("a\x1b[31m\x00\ud800é[red]:x:") == "a\\x1b[31m\\x00\\ud800é[red]:x:"
    text, errors = output("show_logs(); log.warning('a\\nb [red] :x: \\x07'); log.info('\\u20ac \\ud800')")
    assert errors == "warning: a b [red] :x: \\x07\n"
    assert text == "€ \\ud800\n"


def test_durations_and_sizes() -> None:
    assert [duration(s) for s in (5, 200, 7500, float("nan"))] == ["5 s", "3 min 20 s", "2 h 05 min", "?"]
    assert [size(n) for n in (999, 1500, 1.5e9, 2e12)] == ["999 B", "1.5 kB", "1.5 GB", "2.0 TB"]
