"""Output folders that appear whole or not at all, and replace nothing but what their command owns."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exporters.files.lock import Lock, acquire
from exporters.files.place import Owned, check_apart, check_place, resolved, run_folder, work_folder
from exporters.files.swap import NEW, READY, RUN, Ready, make_ready, remove, settle, write_whole
from passes.errors import FinishedError, LpcError, OutputError, OutputExistsError

__all__ = ["Owned", "check_output", "claimed", "sha256", "staged_folder", "write_text", "write_texts"]

logger = logging.getLogger(__name__)

HASH_CHUNK_BYTES = 1 << 20
UPDATE = ".lpc-update.json"
"""Texts that are to be written into a folder together, while they are being written."""

FILES = "files"
"""The folder in which a pass that writes a format keeps what it wrote."""

_claims: dict[Path, tuple[int, str]] = {}
"""The places that this process holds, with its number, as a fork does not inherit them, and what was asked for."""


def check_output(
    folder: Path,
    *,
    force: bool,
    owned: Owned | None = None,
    reads: Sequence[str | Path] = (),
    writes: Sequence[Path] = (),
    needs_bytes: int = 0,
) -> Path:
    """Raise OutputError early, before hours of work, if an output cannot be written to the folder; return its place.

    The place is the folder behind symbolic links. ``owned`` says what an existing output may lose to the new one (by
    default only what is written anew). ``reads`` are the command's inputs, which the output must not take away, and
    ``writes`` what it writes besides. ``needs_bytes`` is an estimate of the output's size. A folder that is not empty
    is refused with OutputExistsError unless ``force``.
    """
    place = resolved(Path(folder))
    check_place(place, needs_bytes)
    names = owned.names if owned else frozenset[str]()
    check_apart(place, names, reads, writes)
    if place.is_dir() and any(place.iterdir()) and not force:
        raise OutputExistsError(
            f"the output folder {folder} is not empty; choose another one, or pass --force (force=True)"
        )
    if owned is not None:
        owned.check(place)
        check_apart(place, owned.entries(place), reads, writes)
    return place


@contextmanager
def claimed(
    folder: Path,
    *,
    force: bool = False,
    owned: Owned | None = None,
    reads: Sequence[str | Path] = (),
    writes: Sequence[Path] = (),
    needs_bytes: int = 0,
    asked: str = "",
) -> Iterator[Path]:
    """Hold an output's place, from before the first step to the end: no other run can write there.

    What a dead run left beside it is settled first: a finished output is put in its place, an unfinished one removed.
    Checks what ``check_output`` checks, before and after that. A place that this process holds already stays held.
    ``asked`` says what is to be written there. Yields the place. Raises OutputError, with the holder's name if another
    process has it, and FinishedError if what a dead run left is what is ``asked`` for.
    """
    left = Ready.read(work_folder(resolved(Path(folder))))
    more: dict[str, Any] = {"owned": owned, "reads": reads, "writes": writes, "needs_bytes": needs_bytes}
    place = check_output(folder, force=force or left is not None, **more)
    if _is_held(place):
        yield place
        return
    work = work_folder(place)
    with _as_output_errors(place):
        made = _make_parents(place)
        lock = None
        try:
            lock = _settled_lock(work, place)
            _claims[place] = os.getpid(), asked
            check_output(folder, force=force, **more)
        except BaseException as error:
            _let_go(place, lock, made)
            if left is not None and isinstance(error, OutputExistsError):
                if asked and asked == left.asked:
                    raise FinishedError(f"{folder} is finished, by this very command: nothing is left to do") from None
                error.add_note("what lies there was finished by a run that died, and is put in its place by now")
            raise
    try:
        yield place
    finally:
        _let_go(place, lock, made)


def has_ready(place: Path) -> bool:
    """Whether a run has left a finished output that it did not come to put in its place, or to tidy up behind."""
    return (work_folder(place) / READY).is_file()


def put_in_place(folder: Path) -> bool:
    """Put the finished output in its place that a dead run left; whether there was one.

    Raises what ``claimed`` raises.
    """
    if not has_ready(resolved(Path(folder))):
        return False
    with claimed(folder, force=True):
        return True


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder that one run at a time may use, until the block ends; one that this process holds stays held.

    ``what`` it is, for the error. It is made if it is not there, and goes if nothing is left in it. Raises OutputError,
    with the holder's name if another process has it.
    """
    place = Path(os.path.realpath(folder))
    if _is_held(place):
        yield
        return
    with _as_output_errors(place):
        made = _make_parents(place)
        lock = None
        try:
            lock = acquire(place, what)
            lock.sign()
        except BaseException:
            _let_go(place, lock, made)
            raise
        _claims[place] = os.getpid(), ""
    try:
        yield
    finally:
        _let_go(place, lock, made)


@contextmanager
def staged_folder(
    folder: Path,
    *,
    force: bool = False,
    owned: Owned | None = None,
    reads: Sequence[str | Path] = (),
    run: Path | None = None,
) -> Iterator[Path]:
    """A folder beside ``folder`` to write into, which takes its place when the block ends well.

    If the block fails, nothing is left behind and an existing ``folder`` stays as it was. With ``force`` the entries of
    an existing folder that are ``owned`` or written anew are replaced; all else in it is carried over. At every moment
    ``folder`` is the whole old output or the whole new one; where the file system cannot exchange two folders in one
    step, a run that is killed between two renames leaves it to the next one to put it there. ``run``: the folder in
    which the run that makes it kept what it had done; if that is the output's own, ``run_folder``, it goes. Raises what
    ``claimed`` raises, and OutputError when the disk refuses.
    """
    with claimed(folder, force=force, owned=owned, reads=reads) as place, _as_output_errors(place):
        work = work_folder(place)
        new = work / NEW
        if new.exists():
            raise OutputError(f"{place} is being written by another thread, or its output was kept: see {new}")
        new.mkdir()
        try:
            yield new
            ends_run = run is not None and os.path.realpath(run) == str(run_folder(place))
            goes, asked = _goes(new, place, owned), _claims[place][1]
            make_ready(work, place, goes, force=force, ends_run=ends_run, asked=asked)
        except BaseException:
            remove(new)
            raise
        settle(work, place)


def _is_held(place: Path) -> bool:
    return place in _claims and _claims[place][0] == os.getpid()


def _goes(new: Path, place: Path, owned: Owned | None) -> frozenset[str]:
    """The names in ``place`` that the new output may replace."""
    written = frozenset(os.listdir(new))
    if owned is None:
        return written
    return owned.entries(place) | (written if not place.is_dir() or owned.is_made(place) else frozenset())


def _settled_lock(work: Path, place: Path) -> Lock:
    """The lock on a place, signed, once what a dead holder left is settled.

    An unfinished output from another pid namespace is set aside and not removed.
    """
    lock = acquire(work, place)
    try:
        strange = lock.left is not None and not lock.left.shares_pids and lock.left.is_of_this_kernel
        if lock.left is not None and strange and (work / NEW).is_dir() and not (work / READY).exists():
            aside = work.with_name(f"{work.name}-{lock.left.pid}-{int(lock.left.started)}")
            os.rename(work, aside)
            if (aside / RUN).is_dir():  # to be gone on with: its writer is dead, since the lock was free
                work.mkdir()
                os.rename(aside / RUN, work / RUN)
            logger.warning("an unfinished output of %s was left in %s: remove it if it is not needed", lock.left, aside)
            os.close(lock.descriptor)
            lock = acquire(work, place)
        lock.sign()
        settle(work, place)
    except BaseException:
        lock.release()
        raise
    return lock


def _let_go(place: Path, lock: Lock | None, made: Sequence[Path]) -> None:
    if lock is not None:
        _claims.pop(place, None)
        lock.release()
    for parent in made:
        with contextlib.suppress(OSError):
            parent.rmdir()


def _make_parents(place: Path) -> list[Path]:
    """Make the folders above a place; returns those that were not there, the innermost first."""
    missing = [parent for parent in place.parents if not parent.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    return missing


@contextmanager
def _as_output_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, LpcError):
            raise
        kept = work_folder(place) / NEW
        end = f"the finished output is kept in {kept}" if kept.exists() else "nothing was left behind"
        raise OutputError(f"could not write {place}: {error.strerror or error}; {end}") from error


def linked(source: Path, target: Path) -> None:
    """Have a folder hold the files of another one: the very same ones where that can be, else copies."""
    shutil.copytree(source, target, copy_function=_link_or_copy, dirs_exist_ok=True)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def sha256(path: Path) -> str:
    """The file's sha256, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either the old one or whole; behind a symbolic link, the file that it leads to.

    Raises OutputError when the disk refuses.
    """
    try:
        write_whole(Path(os.path.realpath(path)), text.encode())
    except OSError as error:
        raise OutputError(f"could not write {path}: {error.strerror or error}") from error


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write several files of a folder together: after a kill in between, ``finish_update`` writes the rest.

    Nothing else in the folder is touched, which therefore may be a mount point or in use. Raises OutputError.
    """
    write_text(folder / UPDATE, json.dumps(texts))
    finish_update(folder)


def finish_update(folder: Path) -> None:
    """Write what is left of an update that was cut short. Raises OutputError."""
    if not (folder / UPDATE).is_file():
        return
    texts: dict[str, str] = json.loads((folder / UPDATE).read_text(encoding="utf-8"))
    for name, text in texts.items():
        for partial in (folder / name).parent.glob(f".{Path(name).name}.partial-*"):
            partial.unlink(missing_ok=True)
        write_text(folder / name, text)
    (folder / UPDATE).unlink()


@contextmanager
def updating(folder: Path) -> Iterator[None]:
    """Wait for other processes that update files of the folder, then keep them waiting; finishes a cut update first."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: each file is still whole
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        finish_update(folder)
        yield
    finally:
        os.close(descriptor)
