"""Putting a finished folder in the place of an older one, so that a kill at any moment loses neither.

Everything happens in a work folder beside the output: ``new`` is written there, ``ready.json`` says that it is whole
and what it replaces, then ``new`` and the output change places in one step, and what was the output becomes ``old`` and
is removed. Whatever else lay in the output has been linked into ``new`` before, so that it is never missing. ``settle``
goes through these steps from wherever they stopped: a run calls it at its end, and the next one for a run that died.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from passes.errors import OutputError

logger = logging.getLogger(__name__)

NEW, OLD, READY, RUN = "new", "old", "ready.json", "run"
AT_FDCWD, RENAME_EXCHANGE = -100, 2
CANNOT_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}

Marks = list[list[str | int]]
"""Name, time of last change [ns] and size of top-level entries: two different outputs never have the same."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A finished ``new``: the marks of what it holds, those of the entries that it replaces, and their names.

    ``ends_run``: it is what the run that is kept beside it was to make, which therefore goes. ``asked``: what was asked
    for, for the same to be told from another; empty if nobody said.
    """

    made: Marks
    replaced: Marks
    names: list[str]
    force: bool
    ends_run: bool = False
    asked: str = ""

    @classmethod
    def read(cls, work: Path) -> Ready | None:
        """The record in a work folder; None if nothing is ready there."""
        try:
            return cls(**json.loads((work / READY).read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError, RecursionError) as error:
            raise OutputError(
                f"{work / READY} is not lpc's ({error}): remove that file, or choose another folder"
            ) from error


def make_ready(
    work: Path, place: Path, goes: frozenset[str], *, force: bool, ends_run: bool = False, asked: str = ""
) -> None:
    """Record that ``new`` is whole, once it is on the disk. ``goes`` are the names in ``place`` that it may replace."""
    new = work / NEW
    _open_to_readers(new)
    for path in (*new.rglob("*"), new):
        if not path.is_symlink():
            sync(path)
    made = marks(new)
    names = sorted(goes)
    replaced = marks(place, names)
    ready = Ready(made=made, replaced=replaced, names=names, force=force, ends_run=ends_run, asked=asked)
    write_whole(work / READY, json.dumps(asdict(ready)).encode())


def settle(work: Path, place: Path) -> None:
    """Bring what is ready in ``work`` into ``place`` from wherever this stopped; remove what is not ready.

    Raises OutputError if something has come into ``place`` meanwhile that would be lost; the finished output stays.
    """
    ready, new, old = Ready.read(work), work / NEW, work / OLD
    if ready is not None and ready.ends_run:
        remove(work / RUN)
    if ready is not None and new.is_dir():
        if marks(new, [str(mark[0]) for mark in ready.made]) == ready.made:
            _check_unchanged(ready, new, place)
            _replace(new, old, place, ready.names)
        else:
            os.rename(new, old)
        sync(place.parent)
    if ready is not None and old.is_dir():
        for name in _others(old, ready.names):
            _bring_back(old / name, place / name)
    for folder in (old, new):
        remove(folder)
    for record in (work / READY, *work.glob(f".{READY}.partial-*")):
        record.unlink(missing_ok=True)


def _check_unchanged(ready: Ready, new: Path, place: Path) -> None:
    """Raises OutputError if the output would take away what is not its own, or what came while it was written."""
    there = set(os.listdir(place)) if place.is_dir() else set()
    theirs = there & {str(mark[0]) for mark in ready.made} - set(ready.names)
    if theirs:
        why = f"{place / min(theirs)} was not written by this command"
    elif there and (not ready.force or marks(place, ready.names) != ready.replaced):
        why = f"{place} was changed by someone else meanwhile"
    else:
        return
    raise OutputError(f"{why}, so the new output was not put there: it is whole in {new}; move it where you want it")


def _replace(new: Path, old: Path, place: Path, names: list[str]) -> None:
    """The step itself: one rename where there was nothing, one exchange else; two renames where that is unknown."""
    if not place.is_dir() or not any(place.iterdir()):
        os.rename(new, place)
        return
    for name in _others(place, names):
        _link(place / name, new / name)
    _copy_mode(place, new)
    os.utime(new)
    sync(new)
    if exchange(new, place):
        os.rename(new, old)
    else:
        os.rename(place, old)
        os.rename(new, place)


def exchange(first: Path, second: Path) -> bool:
    """Let two paths change places in one step; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(second))


def marks(folder: Path, names: Iterable[str] | None = None) -> Marks:
    """The marks of a folder's entries, or of those of these names that are there; none for a folder that is not."""
    found: Marks = []
    for name in sorted(os.listdir(folder) if names is None and folder.is_dir() else names or ()):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            stat = (folder / name).lstat()
            found.append([name, stat.st_mtime_ns, stat.st_size])
    return found


def _others(folder: Path, names: list[str]) -> list[str]:
    return sorted(set(os.listdir(folder)) - set(names))


def _link(source: Path, target: Path) -> None:
    """Have ``target`` be the same file, or a folder of the same files; what cannot be linked is moved later."""
    if not source.is_dir() or source.is_symlink():
        with contextlib.suppress(OSError, NotImplementedError):
            os.link(source, target, follow_symlinks=False)
        return
    try:
        entries = os.listdir(source)
        target.mkdir(exist_ok=True)
    except OSError:
        return
    for entry in entries:
        _link(source / entry, target / entry)
    _copy_mode(source, target)


def _bring_back(source: Path, target: Path) -> None:
    """Move into the new output what could not be linked, or came into the old one while it was being replaced."""
    if not os.path.lexists(target):
        os.rename(source, target)
    elif all(path.is_dir() and not path.is_symlink() for path in (source, target)):
        for name in os.listdir(source):
            _bring_back(source / name, target / name)
    elif source.lstat().st_mtime_ns > target.lstat().st_mtime_ns:
        os.replace(source, target)


def _copy_mode(source: Path, target: Path) -> None:
    """Give a folder another's mode, times and attributes, and its group where the user may."""
    with contextlib.suppress(OSError):
        os.chown(target, -1, source.stat().st_gid)
    with contextlib.suppress(OSError):
        shutil.copystat(source, target)


def _open_to_readers(folder: Path) -> None:
    """Give files the user's default mode; safetensors writes them readable by the owner only, so no server could."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def sync(path: Path) -> None:
    """Have a file's or folder's content on the disk before anything relies on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP}:  # folders, in places
            raise
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is the old one or whole, after a kill as after a power cut."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(content)
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Remove a folder; what cannot be removed stays, with a warning."""
    if os.path.lexists(folder):
        shutil.rmtree(folder, ignore_errors=True)
    if os.path.lexists(folder):
        logger.warning("%s is not needed any more and could not be removed: remove it by hand", folder)
