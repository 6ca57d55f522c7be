"""One writer an output: a lock that says who holds it, and that the kernel lets go when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import psutil

from passes.errors import OutputError

LOCK = "lock"
ATTEMPTS = 100
UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}
"""What flock answers on file systems without locks; the holder's process is looked up then."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process that writes: where it runs, and what its number means there.

    ``machine`` is the installation's id, ``boot`` the running kernel's, ``pids`` the namespace that ``pid`` belongs to;
    each is empty where the system does not tell. ``started`` is the process's start, in seconds since the epoch.
    """

    host: str
    machine: str
    boot: str
    pids: str
    pid: int
    started: float

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        process = psutil.Process()
        return cls(**_system(), pids=_link("/proc/self/ns/pid"), pid=process.pid, started=process.create_time())

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        return f"process {self.pid} on {self.host}, started {when}"

    @property
    def is_of_this_kernel(self) -> bool:
        """Whether it ran under this kernel, whose locks are then the truth about it."""
        here = _system()
        return bool(self.boot) and (self.host, self.boot) == (here["host"], here["boot"])

    @property
    def shares_pids(self) -> bool:
        """Whether its number means here what it meant there."""
        return self.is_of_this_kernel and self.pids == _link("/proc/self/ns/pid")

    @property
    def is_gone_with_a_reboot(self) -> bool:
        """Whether it ran on this machine before it was started anew."""
        here = _system()
        return self.boot != here["boot"] and (self.host, self.machine) == (here["host"], here["machine"])

    @property
    def runs(self) -> bool:
        """Whether the process is there, as far as its number says."""
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) < 1)
        except psutil.NoSuchProcess:
            return False


@dataclass(frozen=True, kw_only=True)
class Lock:
    """A lock that this process holds on ``folder``. ``left`` is a dead holder that did not let go, None if none."""

    folder: Path
    descriptor: int
    left: Owner | None

    def sign(self) -> None:
        """Say that it is this process that holds it now."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps(asdict(Owner.here())).encode(), 0)
        os.fsync(self.descriptor)

    def release(self) -> None:
        """Let go, and remove the folder if nothing else lies in it."""
        try:
            (self.folder / LOCK).unlink(missing_ok=True)
            os.rmdir(self.folder)
        except OSError:
            pass  # something is kept in it, or the next writer has come already
        finally:
            os.close(self.descriptor)


def acquire(folder: Path, what: object) -> Lock:
    """Take the lock that lies in ``folder`` (made if it is not there). ``what`` it is on, such as an output's path.

    Raises OutputError, naming the holder, if another process has it, or if a holder did not let go that cannot be seen
    from here: one of another host.
    """
    for _ in range(ATTEMPTS):
        folder.mkdir(exist_ok=True)
        try:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            continue  # the last holder has just removed it
        try:
            left = _dead_holder(descriptor, folder / LOCK, what)
        except BaseException:
            os.close(descriptor)
            raise
        if _is_there(folder / LOCK, descriptor):
            return Lock(folder=folder, descriptor=descriptor, left=left)
        os.close(descriptor)
    raise OutputError(f"could not lock {what}: {folder} comes and goes; choose another folder")


def _dead_holder(descriptor: int, file: Path, what: object) -> Owner | None:
    """Lock the open file; who signed it last, if that one is dead. Raises OutputError if it may be alive."""
    locked = _flock(descriptor)
    owner = _read(descriptor)
    if locked is False or (locked is None and owner is not None and owner.shares_pids and owner.runs):
        who = owner or "another process"
        raise OutputError(
            f"{what} is being written by {who}, which holds the lock {file}: wait for it, or choose another folder"
        )
    if owner is not None and not _is_gone(owner, locked=bool(locked)) and _is_there(file, descriptor):
        raise OutputError(
            f"{what} may be being written by {owner}, which cannot be seen from here: choose another folder; "
            f"if that process is gone, remove its lock, {file}, and nothing else"
        )
    return owner


def _is_gone(owner: Owner, *, locked: bool) -> bool:
    """Whether a holder that is not seen to hold it is known to be dead."""
    return owner.is_gone_with_a_reboot or owner.shares_pids or (owner.is_of_this_kernel and locked)


def _flock(descriptor: int) -> bool | None:
    """True: taken, False: another has it, None: this file system knows no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return None
        raise
    return True


def _read(descriptor: int) -> Owner | None:
    """Who signed; None if nobody has, or was killed in the act."""
    try:
        return Owner(**json.loads(os.pread(descriptor, 1 << 16, 0)))
    except (ValueError, TypeError, RecursionError):
        return None


def _is_there(path: Path, descriptor: int) -> bool:
    """Whether the open file still lies at the path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@cache
def _system() -> dict[str, str]:
    return {
        "host": socket.gethostname(),
        "machine": _text("/etc/machine-id"),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
    }


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
