"""Which process works on what, where several share a folder: a file says who, and is renewed for as long as it works.

A lease only saves double work, and what is right must not rest on it: two processes may come to hold one, where a
machine stood still for longer than `LEASE_S` or a file system does not create files exclusively. No lock of the system
is needed, which many file systems of networks lack, or keep for a machine that is gone.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from hist_cache.files import HOST, write_error
from hist_cache.living import began, this_machine

log = logging.getLogger(__name__)

RENEW_S = 30.0
LEASE_S = 180.0  # without renewal, after which a holder counts as gone; file systems may show a time a minute late
CLOCK_LOOK_S = 60.0  # that a look at the file server's clock is good for
ENOTSUPP = 524  # of the kernel, which some file systems let through; Python has no name for it
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, ENOTSUPP)  # what file systems without locks answer
ENDING = ".lock"


@dataclass(frozen=True)
class Holder:
    """A process that holds a lease.

    Attributes:
        host: Name of its machine, for people.
        machine: What its number is one of: a boot of a machine, and a container there (`this_machine`).
        pid: Its number.
        began: When it began, in seconds.
        token: Tells leases of one process apart.
    """

    host: str
    machine: str
    pid: int
    began: int
    token: str

    def __str__(self) -> str:
        """Say who it is, for messages."""
        return f"process {self.pid} on {self.host}"

    @property
    def here(self) -> bool:
        """Whether it is one of those that this process can see."""
        return self.machine == this_machine()


def read_holder(file: Path) -> Holder | None:
    """Read who holds a lease; None where nobody does, or nobody has said so yet.

    A lock file of an earlier version is empty.
    """
    try:
        holder = Holder(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return holder if isinstance(holder.pid, int) and isinstance(holder.began, int) else None


class Lease:
    """A lease that is held; `release` ends it."""

    def __init__(self, file: Path, own: Holder) -> None:
        self.file, self._own = file, own

    @property
    def name(self) -> str:
        """What it is of."""
        return self.file.name.removesuffix(ENDING)

    def create(self) -> bool:
        """Create the file, unless there is one; returns whether it was created."""
        try:
            descriptor = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, json.dumps(asdict(self._own)).encode())
        finally:
            os.close(descriptor)
        return True

    def renew(self) -> None:
        """Say that the holder is at work, unless another has taken the lease over while this one stood still."""
        with suppress(OSError):
            if read_holder(self.file) == self._own:
                os.utime(self.file)  # without a time: the file server's own

    def release(self) -> None:
        """Remove the file, if it is this lease's own."""
        with suppress(OSError):
            if read_holder(self.file) == self._own:
                self.file.unlink()


class Leases:
    """The leases of a folder, as one process takes them; a thread renews those that it holds.

    Args:
        folder: The folder of their files, which is made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: set[Lease] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._ahead: tuple[float, float] | None = None  # file server's clock - ours, and when that was found
        self._said = False

    def file(self, name: str) -> Path:
        """Return the file of a lease."""
        return self.folder / f"{name}{ENDING}"

    def take(self, name: str) -> Lease | None:
        """Take a lease, if no living process holds it. It is taken over from one that is dead or gone.

        Where the file system cannot have leases, which is said once, everybody gets each of them.

        Raises:
            WriteError: Nothing can be written there for another reason.
        """
        self._start()
        pid = os.getpid()
        lease = Lease(self.file(name), Holder(HOST, this_machine(), pid, began(pid) or 0, secrets.token_hex(4)))
        self._held.add(lease)  # before it is created: an interrupt may come between
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if lease.create() or (self._remove_dead(lease.file) and lease.create()):
                return lease
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise write_error(error, self.folder.parent) from error
            if not self._said:
                log.warning(f"{self.folder}: no locks there ({error}); two commands at once may do the same work twice")
            self._said = True
            return lease
        self._held.discard(lease)
        return None

    def release(self, lease: Lease) -> None:
        """End a lease."""
        lease.release()
        self._held.discard(lease)

    def close(self) -> None:
        """End all leases that are held."""
        self._stop.set()
        for lease in list(self._held):
            self.release(lease)

    def is_held(self, name: str) -> bool:
        """Whether a living process holds a lease."""
        return self._lives(self.file(name))

    def age_s(self, file: Path) -> float:
        """Seconds since a file of this file system was last written or renewed, by the file server's clock.

        Raises:
            FileNotFoundError: It is not there.
        """
        changed = file.stat().st_mtime
        if self._ahead is None or time.monotonic() - self._ahead[1] > CLOCK_LOOK_S:
            self._ahead = self._server_time() - time.monotonic(), time.monotonic()
        return time.monotonic() + self._ahead[0] - changed

    def remove_left(self) -> None:
        """Remove the files of leases whose holders are dead or gone."""
        for file in self.folder.glob("*"):
            with suppress(OSError):
                self._remove_dead(file)

    def _server_time(self) -> float:
        """The file server's clock: the time of a file that is written now."""
        probe = self.folder / f".now.{HOST}-{os.getpid()}-{secrets.token_hex(4)}"
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _lives(self, file: Path) -> bool:
        holder = read_holder(file)
        if holder is not None and holder.here:
            since = began(holder.pid)
            if since is None or abs(since - holder.began) > 1:  # of numbers that were rounded
                return False
        try:
            return self.age_s(file) < LEASE_S
        except FileNotFoundError:
            return False

    def _remove_dead(self, file: Path) -> bool:
        """Remove the file of a lease whose holder is dead or gone; returns whether that was so.

        Of several that find it dead one removes it: it is moved aside first, and moved back where it turns out to be
        the lease of another that was quicker.
        """
        holder = read_holder(file)
        if self._lives(file):
            return False
        aside = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        try:
            file.rename(aside)
        except FileNotFoundError:
            return True
        if read_holder(aside) != holder:
            with suppress(OSError):
                os.link(aside, file)
            aside.unlink(missing_ok=True)
            return False
        aside.unlink(missing_ok=True)
        return True

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._renew, name="renew leases", daemon=True)
            self._thread.start()

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            for lease in list(self._held):
                lease.renew()
