"""The recipes of a Ray cluster on a real Slurm: a head and an array of workers, each of which is requeued once."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import extract.cli
from tests.conftest import HIST_EXTRACT, REPOSITORY, TINY_ENCODER, write_slide
from tests.scale.ray_loopback import LOOPBACK
from tests.scale.slurm import Slurm, wait_until
from tests.small import Run, cached, unfinished

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

HEAD, WORKER = (REPOSITORY / "docs/scale" / name for name in ("ray-head.sbatch", "ray-worker.sbatch"))
DRIVER = [sys.executable, "-m", "tests.scale.ray_driver"]
BOTH = ("gpu0:0", "gpu1:0")
SLIDES = [f"TINY{i}" for i in range(1, 9)]
DAEMONS = ("munged", "slurmctld", "slurmd", "slurmstepd")


@dataclass
class RayOnSlurm:
    """A head in the partition cpu and two workers in the partition gpu, as the recipes start them."""

    slurm: Slurm
    folder: Path
    head: str
    workers: str
    environment: dict[str, str]

    @property
    def address(self) -> str:
        """Where the head is; empty while there is none."""
        path = self.folder / "ray/address"
        return path.read_text().strip() if path.exists() else ""

    def start(self, command: list[str], *argv: object, token: Path | None = None) -> subprocess.Popen[str]:
        """Start a command that uses the cluster, by default with its token."""
        environment = {
            **self.slurm.environment,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token or self.folder / "ray/token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
        }
        line = [*command, *map(str, argv)]
        return subprocess.Popen(
            line, env=environment, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def logs(self) -> str:
        """What the jobs have printed."""
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))

    def ray_processes(self) -> list[psutil.Process]:
        """Processes that the jobs have started."""
        return [process for process in self.slurm.processes() if process.info["name"] not in DAEMONS]


def output(process: subprocess.Popen[str], seconds: float = 240) -> str:
    """Wait for a command's end; returns what it printed."""
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return f"{process.communicate()[0]}\nstill running after {seconds} s"


@pytest.fixture(scope="module")
def cluster(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayOnSlurm]:
    pytest.importorskip("ray", reason="no Ray here (pip install 'hist-cache[ray]')")
    folder = tmp_path_factory.mktemp("ray-on-slurm")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "HIST_RAY_IP": LOOPBACK,
        "RAY_START_HOOK": "tests.scale.ray_loopback.loopback",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "20",  # after which nodes and drivers give a lost head up
        "OMP_NUM_THREADS": "1",
    }
    head = slurm.submit(folder, "--requeue", HEAD, environment=environment)
    small = ("--object-store-memory=80000000", "--num-cpus=1", "--num-gpus=0")
    workers = slurm.submit(folder, "--array=0-1", "--requeue", WORKER, *small, environment=environment)
    started = RayOnSlurm(slurm, folder, head, workers, environment)
    wait_until(lambda: started.address, "the head has written its address", more=started.logs)
    yield started
    slurm.call("scancel", started.head, workers)
    wait_until(lambda: not started.ray_processes(), "nothing is left", 90, lambda: str(started.ray_processes()))


def listening(processes: list[psutil.Process]) -> set[str]:
    """Addresses at which processes wait for connections."""
    found = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it has just ended
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add(connection.laddr.ip.removeprefix("::ffff:"))
    return found


def test_both_nodes_work_for_who_has_the_token(cluster: RayOnSlurm, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    refused = cluster.start(DRIVER, cluster.address, *BOTH, token=wrong)
    in_the_head = ["srun", "--overlap", f"--jobid={cluster.head}", *DRIVER]  # as from a login node
    accepted = cluster.start(in_the_head, cluster.address, *BOTH)
    text = output(accepted)
    assert accepted.returncode == 0, text + cluster.logs()
    assert listening(cluster.ray_processes()) == {LOOPBACK}
    assert output(refused)
    assert refused.returncode == 1
    token = cluster.folder / "ray/token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert token.read_text() not in cluster.logs()


def test_a_requeued_worker_joins_again(cluster: RayOnSlurm) -> None:
    driver = cluster.start(DRIVER, cluster.address, "gpu0:0", "gpu1:0", "gpu1:1")
    assert driver.stdout is not None
    assert any("gpu1:0" in line for line in driver.stdout)
    cluster.slurm.requeue(f"{cluster.workers}_1")
    text = output(driver)
    assert driver.returncode == 0, text + cluster.logs()


def test_the_command_does_the_slides(cluster: RayOnSlurm, tmp_path: Path, run_command: Run) -> None:
    for i, slide in enumerate(SLIDES):
        write_slide(tmp_path / "hest", slide, rows=4, columns=6, seed=i)
    options = ("--ids", ",".join(SLIDES), "--dataset", "tiny", "--data-root", tmp_path / "hest", "--encoder",
               TINY_ENCODER, "--random-weights", "--precision", "fp32")  # fmt: skip
    code, text = run_command(extract.cli.main, *options, "--cache", tmp_path / "alone")
    assert code == 0, text
    engine = ("--engine", "ray", "--address", cluster.address, "--cache", tmp_path / "shared")
    command = cluster.start([sys.executable, "-c", HIST_EXTRACT], *options, *engine)
    text = output(command)
    assert command.returncode == 0, text + cluster.logs()
    assert cached(tmp_path / "shared") == cached(tmp_path / "alone")
    assert unfinished(tmp_path / "shared") == []


def test_a_requeued_head_is_found_again(cluster: RayOnSlurm) -> None:
    before = cluster.address
    driver = cluster.start(DRIVER, before)
    assert driver.stdout is not None
    assert any("gpu" in line for line in driver.stdout), "it works"
    cluster.slurm.requeue(cluster.head)
    text = output(driver, 120)
    assert driver.returncode not in (0, -9), text
    wait_until(lambda: cluster.address not in ("", before), "the head is back", more=cluster.logs)
    again = cluster.start(DRIVER, cluster.address, "gpu0:0", "gpu1:1")
    text = output(again)
    assert again.returncode == 0, text + cluster.logs()


def test_a_head_ends_with_its_command(cluster: RayOnSlurm) -> None:
    cluster.slurm.call("scancel", cluster.head)
    wait_until(lambda: not cluster.address, "the head has taken its address away")
    line = " ".join([*DRIVER, "$RAY_ADDRESS", "gpu0:0", "gpu1:1"])
    environment = cluster.environment
    cluster.head = cluster.slurm.submit(cluster.folder, HEAD, "bash", "-c", line, environment=environment)
    wait_until(lambda: cluster.slurm.state(cluster.head) not in ("PENDING", "RUNNING"), "it ends", 240, cluster.logs)
    ended = cluster.slurm.job(cluster.head)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), cluster.logs()
    assert "gpu1:1" in (cluster.folder / f"hist-ray-head-{cluster.head}.log").read_text()
    assert not cluster.address
    wait_until(lambda: not cluster.slurm.call("squeue", "-h"), "the workers have ended too", more=cluster.logs)
    for element in (0, 1):
        assert cluster.slurm.state(f"{cluster.workers}_{element}") == "COMPLETED", cluster.logs()
