"""A real Slurm on this machine: munged, slurmctld and a slurmd for each node, in a folder of its own, on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
NODES = ("gpu0", "gpu1", "cpu0")

CONFIG = """ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
KillWait=30
GresTypes=gpu
{nodes}
PartitionName=gpu Nodes=gpu[0-1] Default=YES
PartitionName=cpu Nodes=cpu0
"""
# The nodes have more cores and memory than the machine, so that recipes can ask for what a cluster has.
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=32 RealMemory=256000{gpu} State=UNKNOWN"
GPUS = "NodeName=gpu[0-1] Name=gpu File=/dev/null\n"  # a device file must be named; /dev/null stands for a GPU


def reason_to_skip() -> str | None:
    """Why there can be no Slurm here, if so."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"no {', '.join(absent)} here (Debian: apt-get install slurm-wlm)"
    return None if os.geteuid() == 0 else "Slurm's daemons are started as root only"


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens to."""
    sockets = [socket.socket() for _ in range(count)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    return ports


def wait_until(
    what: Callable[[], object], said: str, seconds: float = 90, more: Callable[[], str] = lambda: ""
) -> None:
    """Wait until `what()` holds; `said` names it in the error if it never does, with `more()` beside it."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not within {seconds} s: {said}\n{more()}"
        time.sleep(0.1)


class Slurm:
    """A cluster with the nodes gpu0 and gpu1, a GPU each, in the partition gpu, and cpu0 in the partition cpu."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hist-slurm-"))  # short: a socket's path may not be long
        self.environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the daemons and wait until all nodes can take jobs."""
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        host = socket.gethostname().split(".")[0]  # as Slurm names a machine
        controller_port, *ports = free_ports(1 + len(NODES))
        nodes = [
            NODE.format(name=name, host=host, port=port, gpu=" Gres=gpu:1" if name.startswith("gpu") else "")
            for name, port in zip(NODES, ports, strict=True)
        ]
        for name in NODES:
            (self.folder / name).mkdir()
        config = CONFIG.format(host=host, controller_port=controller_port, folder=self.folder, nodes="\n".join(nodes))
        (self.folder / "slurm.conf").write_text(config)
        (self.folder / "gres.conf").write_text(GPUS)
        munge = {"key-file": key, **{f"{kind}-file": self.folder / f"munge.{kind}" for kind in ("pid", "log", "seed")}}
        options = [f"--{name}={value}" for name, value in munge.items()]
        self._daemon("munged", "--foreground", f"--socket={self.folder / 'munge.socket'}", *options)
        wait_until((self.folder / "munge.socket").exists, "munged answers")
        self._daemon("slurmctld", "-D")
        for name in NODES:
            self._daemon("slurmd", "-D", "-N", name)
        wait_until(self._all_idle, "all nodes are idle")

    def _daemon(self, program: str, *argv: str) -> None:
        with (self.folder / f"{program}-{len(self._daemons)}.log").open("wb") as log:
            self._daemons.append(
                subprocess.Popen(
                    [program, *argv], env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"
                )
            )

    def _all_idle(self) -> bool:
        assert all(daemon.poll() is None for daemon in self._daemons), self.log()
        states = self.call("sinfo", "-h", "-N", "-o", "%N %T", check=False).splitlines()
        return set(states) == {f"{name} idle" for name in NODES}

    def log(self) -> str:
        """What the daemons have said."""
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))

    def call(self, *argv: object, check: bool = True) -> str:
        """Run one of Slurm's commands; returns what it printed."""
        done = subprocess.run(
            [str(a) for a in argv], env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, folder: Path, *argv: object, environment: dict[str, str] | None = None) -> str:
        """Call sbatch in a folder, as a user does; returns the job's number."""
        done = subprocess.run(
            ["sbatch", "--parsable", *map(str, argv)],
            env=self.environment | (environment or {}),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job, or of an element of an array (`7_1`)."""
        text = self.call("scontrol", "show", "job", "--oneliner", job)
        return dict(part.split("=", 1) for part in text.split() if "=" in part)

    def state(self, job: str) -> str:
        """The state of a job or an element, such as RUNNING."""
        return self.job(job)["JobState"]

    def requeue(self, job: str) -> None:
        """Requeue a running job and let it start at once; Slurm would wait two minutes."""
        self.call("scontrol", "requeue", job)
        wait_until(lambda: self.state(job) == "PENDING", f"job {job} was stopped", 60)
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now")

    def stop(self) -> None:
        """End all jobs and all daemons, and whatever they have left."""
        if (self.folder / "slurm.conf").exists():
            with suppress(AssertionError, subprocess.TimeoutExpired):
                self.call("scancel", "--user=root", check=False)
                wait_until(lambda: not self.call("squeue", "-h", check=False), "all jobs have ended", 40)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[psutil.Process]:
        """Processes that belong to this cluster: what its jobs have started names its configuration."""
        found = []
        for process in psutil.process_iter(["name"]):
            with suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                    found.append(process)
        return found
