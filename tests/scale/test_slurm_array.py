"""The recipe of job arrays on a real Slurm: elements share the slides, and one that is requeued joins again."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import extract.cli
from tests.conftest import REPOSITORY, TINY_ENCODER, write_slide
from tests.scale.slurm import Slurm, wait_until
from tests.small import Run, cached, unfinished

RECIPE = REPOSITORY / "docs/scale/extract.sbatch"
SLIDES = [f"TINY{i}" for i in range(1, 17)]

# Read by each Python of a job when it starts, also by workers of the command. Before a finished file gets its name, it
# notes who has made it. The first element waits at its second slide until the test lets it go on, the second one waits
# a moment at each slide, so that it is stopped while slides are left.
NOTES = """import os, sys, time
from pathlib import Path
element, starts = os.environ["SLURM_ARRAY_TASK_ID"], os.environ.get("SLURM_RESTART_COUNT", "0")
folder = Path(os.environ["NOTES"])
made = []
def note(event, args):
    if event == "os.rename" and str(args[1]).endswith(".h5"):
        made.append(Path(os.fsdecode(args[1])).stem)
        if element == "0" and len(made) > 1:
            deadline = time.monotonic() + 120
            while not (folder / "go").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
        elif (element, starts) == ("1", "0"):
            time.sleep(0.3)
        with (folder / "made").open("a") as notes:
            notes.write(f"{element} {starts} {made[-1]}\\n")
sys.addaudithook(note)
"""


@dataclass
class Shared:
    """Slides that jobs share, and what they have noted."""

    slurm: Slurm
    folder: Path
    environment: dict[str, str]

    @property
    def arguments(self) -> list[str]:
        """Options of hist-extract but for the cache."""
        options = ("--ids", ",".join(SLIDES), "--dataset", "tiny", "--data-root", self.folder / "hest")
        return [str(a) for a in (*options, "--encoder", TINY_ENCODER, "--random-weights", "--precision", "fp32")]

    def submit(self, elements: str) -> str:
        """Submit the recipe as its page does; returns the job's number."""
        array = (f"--array={elements}", "--requeue", "--gres=gpu:1")
        return self.slurm.submit(self.folder, *array, RECIPE, *self.arguments, environment=self.environment)

    def made(self, who: str) -> list[str]:
        """Slides made by an element in one of its starts: `1 0` is the first start of element 1."""
        notes = self.folder / "notes/made"
        lines = notes.read_text().splitlines() if notes.exists() else []
        return [line.split()[-1] for line in lines if line.startswith(f"{who} ")]

    def logs(self) -> str:
        """What the jobs have printed."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def wait(self, what: Callable[[], object], said: str) -> None:
        """Wait until `what()` holds."""
        wait_until(what, said, more=self.logs)

    def wait_for_the_end(self) -> None:
        """Wait until no job is left."""
        self.wait(lambda: not self.slurm.call("squeue", "-h"), "all elements have ended")

    def is_complete(self) -> None:
        """Assert that nothing is missing and nothing unfinished is left."""
        assert set(cached(self.folder / "shared")) == {f"{slide}.h5" for slide in SLIDES}
        assert unfinished(self.folder / "shared") == []
        assert list((self.folder / "shared").rglob("*.lock")) == []
        assert "Traceback" not in self.logs()


@pytest.fixture
def shared(slurm: Slurm, tmp_path: Path) -> Shared:
    """Slides, and a hist-extract on the path of jobs whose Python takes notes."""
    for i, slide in enumerate(SLIDES):
        write_slide(tmp_path / "hest", slide, rows=4, columns=6, seed=i)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/sitecustomize.py").write_text(NOTES)
    program = tmp_path / "bin/hist-extract"
    program.parent.mkdir()
    main = "from hist_cache.commands import hist_extract; raise SystemExit(hist_extract())"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{main}" "$@"\n')
    program.chmod(0o755)
    environment = {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{tmp_path / 'notes'}:{REPOSITORY}",
        "NOTES": str(tmp_path / "notes"),
        "OMP_NUM_THREADS": "1",
        "HIST_CACHE": str(tmp_path / "shared"),
    }
    return Shared(slurm, tmp_path, environment)


@pytest.mark.slow
def test_elements_share_the_slides_and_one_is_requeued(shared: Shared, tmp_path: Path, run_command: Run) -> None:
    job = shared.submit("0-1")
    shared.wait(lambda: len(shared.made("1 0")) >= 2, "the second element has made two slides")
    shared.slurm.requeue(f"{job}_1")
    code, text = run_command(extract.cli.main, *shared.arguments, "--cache", tmp_path / "alone")
    assert code == 0, text
    shared.wait(lambda: shared.made("1 1"), "the second element has joined again")
    (tmp_path / "notes/go").touch()
    shared.wait_for_the_end()

    for element in (0, 1):
        ended = shared.slurm.job(f"{job}_{element}")
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), shared.logs()
    log = (tmp_path / f"hist-extract-{job}_1.log").read_text()
    assert "start 1" in log, "the log of the first start was overwritten"
    assert "start 2" in log
    by = [shared.made(who) for who in ("0 0", "1 0", "1 1")]
    assert all(by), by
    assert sorted(slide for slides in by for slide in slides) == sorted(SLIDES), "each slide once, and none lost"
    shared.is_complete()
    assert cached(tmp_path / "shared") == cached(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.long
def test_sigterm_before_the_time_limit(shared: Shared, tmp_path: Path) -> None:
    job = shared.submit("1")
    shared.wait(lambda: len(shared.made("1 0")) >= 2, "it has made two slides")
    shared.slurm.call("scancel", "--batch", "--signal=TERM", f"{job}_1")  # what --signal=B:TERM@60 sends
    shared.wait_for_the_end()
    ended = shared.slurm.job(f"{job}_1")
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "143:0"), shared.logs()
    assert unfinished(tmp_path / "shared") == []
    again = shared.submit("2")
    shared.wait_for_the_end()
    assert shared.slurm.state(f"{again}_2") == "COMPLETED", shared.logs()
    assert sorted(shared.made("1 0") + shared.made("2 0")) == sorted(SLIDES)
    shared.is_complete()
