"""The recipe of job arrays on a real Slurm: elements share the slides, and one that is requeued joins again."""

from __future__ import annotations

import os
import sys
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


def arguments(root: Path) -> list[str]:
    options = ("--ids", ",".join(SLIDES), "--dataset", "tiny", "--data-root", root / "hest", "--encoder", TINY_ENCODER)
    return [str(a) for a in (*options, "--random-weights", "--precision", "fp32")]


@pytest.fixture
def job_environment(tmp_path: Path) -> dict[str, str]:
    """A hist-extract on the path of jobs, whose Python takes notes."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/sitecustomize.py").write_text(NOTES)
    program = tmp_path / "bin/hist-extract"
    program.parent.mkdir()
    main = "from hist_cache.commands import hist_extract; raise SystemExit(hist_extract())"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{main}" "$@"\n')
    program.chmod(0o755)
    return {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{tmp_path / 'notes'}:{REPOSITORY}",
        "NOTES": str(tmp_path / "notes"),
        "OMP_NUM_THREADS": "1",
        "HIST_CACHE": str(tmp_path / "shared"),
    }


@pytest.mark.slow
def test_elements_share_the_slides_and_one_is_requeued(
    slurm: Slurm, tmp_path: Path, job_environment: dict[str, str], run_command: Run
) -> None:
    for i, slide in enumerate(SLIDES):
        write_slide(tmp_path / "hest", slide, rows=4, columns=6, seed=i)
    notes = tmp_path / "notes/made"

    def made(who: str) -> list[str]:
        lines = notes.read_text().splitlines() if notes.exists() else []
        return [line.split()[-1] for line in lines if line.startswith(f"{who} ")]

    job = slurm.submit(
        tmp_path, "--array=0-1", "--requeue", "--gres=gpu:1", RECIPE, *arguments(tmp_path), environment=job_environment
    )

    def logs() -> str:
        return "\n".join(path.read_text() for path in sorted(tmp_path.glob("*.log")))

    wait_until(lambda: len(made("1 0")) >= 2, "the second element has made two slides", more=logs)
    slurm.requeue(f"{job}_1")
    assert len(unfinished(tmp_path / "shared")) <= 1, "the second element has left none, the first one is at it"
    one = run_command(extract.cli.main, *arguments(tmp_path), "--cache", tmp_path / "alone")
    assert one[0] == 0, one[1]
    wait_until(lambda: made("1 1"), "the second element has joined again", more=logs)
    (tmp_path / "notes/go").touch()
    wait_until(lambda: not slurm.call("squeue", "-h"), "both elements have ended", more=logs)

    for element in ("0", "1"):
        ended = slurm.job(f"{job}_{element}")
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), logs()
    log = (tmp_path / f"hist-extract-{job}_1.log").read_text()
    assert "start 1" in log
    assert "start 2" in log, "the log of the first start was overwritten"
    assert "Traceback" not in logs()
    by = [made(who) for who in ("0 0", "1 0", "1 1")]
    assert all(by), by
    assert sorted(sum(by, [])) == sorted(SLIDES), "each slide once, and none lost"
    assert cached(tmp_path / "shared") == cached(tmp_path / "alone")
    assert unfinished(tmp_path / "shared") == []
    assert list((tmp_path / "shared").rglob("*.lock")) == []
