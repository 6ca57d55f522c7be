"""What can be known of an output's place before any work: whether it can be written, and what it must not touch."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporters.files.swap import RUN
from passes.errors import OutputError, OutputExistsError

WORK = ".{}.lpc"
"""The name of the folder beside an output in which the new one is prepared."""

ROOM_FOR_PATHS = 160
"""Bytes that the paths of files inside an output may add to its own."""


@dataclass(frozen=True, kw_only=True)
class Owned:
    """What a command owns in its output folder, and so replaces as a whole; all else there is the user's.

    ``names`` are the names that it writes, ``is_made`` tells whether a folder was written by it: in any other folder
    the names are the user's. ``is_member`` tells whether a further entry is the command's own.
    """

    names: frozenset[str]
    is_made: Callable[[Path], bool]
    is_member: Callable[[Path], bool] = lambda entry: False

    def entries(self, folder: Path) -> frozenset[str]:
        """The names in the folder that are the command's own."""
        found = set(os.listdir(folder)) if folder.is_dir() else set()
        named = found & self.names if found and self.is_made(folder) else set()
        return frozenset(named | {name for name in found if self.is_member(folder / name)})

    def check(self, folder: Path) -> None:
        """Raise OutputExistsError if the folder has names that the command writes and that are the user's."""
        theirs = self.names & set(os.listdir(folder)) if folder.is_dir() else frozenset()
        if theirs and not self.is_made(folder):
            raise OutputExistsError(
                f"{folder / min(theirs)} was not written by this command, so --force does not replace it: "
                "move it away, or choose another folder"
            )


def resolved(folder: Path) -> Path:
    """The folder itself, behind all symbolic links.

    Raises OutputError for a link that leads nowhere, the root, and a name or path that is too long.
    """
    place = Path(os.path.realpath(folder))
    if os.path.islink(folder) and not os.path.exists(place):
        raise OutputError(f"{folder} is a symbolic link to {place}, which is not there: make it, or remove the link")
    if not place.name:
        raise OutputError(f"{place} cannot be replaced as a whole: name a folder inside it")
    circle = next((part for part in place.parents if os.path.islink(part)), None)
    if circle is not None:
        raise OutputError(f"{circle} is a symbolic link that leads back to itself: remove it, or choose another folder")
    _check_names(place, next(path for path in place.parents if os.path.exists(path)))
    return place


def work_folder(place: Path) -> Path:
    """Where the new output is prepared: beside its place, on the same file system."""
    return place.with_name(WORK.format(place.name))


def run_folder(folder: Path) -> Path:
    """Where the run that makes an output keeps what it has done, until the output is complete.

    Raises OutputError as ``resolved`` does.
    """
    return work_folder(resolved(Path(folder))) / RUN


def check_place(place: Path, needs_bytes: int) -> None:
    """Raise OutputError if a folder cannot be made or replaced as a whole there; the place is ``resolved``."""
    if os.path.exists(place) and not os.path.isdir(place):
        raise OutputExistsError(f"{place} is a file; name a folder for the output")
    _check_whole(place)
    try:
        str(place).encode()
    except UnicodeEncodeError as error:
        raise OutputError(
            f"{str(place)!r} is no UTF-8, which weights cannot be written to: choose another name"
        ) from error
    parent = next(path for path in place.parents if os.path.exists(path))
    if not parent.is_dir():
        raise OutputError(f"{parent} is a file, so there can be no {place}; choose another folder")
    if not os.access(parent, os.W_OK | os.X_OK) or _is_anothers(place, parent):
        raise OutputError(f"cannot write to {parent}; choose a folder that you may write to")
    free = os.statvfs(parent)
    if needs_bytes > free.f_bavail * free.f_frsize:
        raise OutputError(
            f"the output needs about {needs_bytes:,} bytes, and there are {free.f_bavail * free.f_frsize:,} free in "
            f"{parent}: make room, or choose another folder"
        )


def _is_anothers(place: Path, parent: Path) -> bool:
    """Whether the place is another user's in a folder where one may move only what is one's own."""
    if not os.path.exists(place) or not parent.stat().st_mode & stat.S_ISVTX:
        return False
    return os.geteuid() not in {0, place.stat().st_uid, parent.stat().st_uid}


def _check_names(place: Path, parent: Path) -> None:
    longest = os.pathconf(parent, "PC_NAME_MAX")
    missing = place.parts[len(parent.parts) :] or (place.name,)
    for name in (*missing, work_folder(place).name):
        if len(os.fsencode(name)) > longest:
            raise OutputError(
                f"the name {place.name[:40]}... is too long for {parent}: names have at most {longest} bytes there, "
                f"and lpc needs {len(WORK) - 2} of them; choose a shorter one"
            )
    if len(os.fsencode(place)) + ROOM_FOR_PATHS > os.pathconf(parent, "PC_PATH_MAX"):
        raise OutputError(f"the path {str(place)[:40]}... is too long to hold an output; choose a shorter one")


def _check_whole(place: Path) -> None:
    """Raise OutputError if the folder that is there cannot be replaced as a whole."""
    for mount in _mounts(place):
        if mount == place:
            raise OutputError(
                f"{place} is a mount point, which cannot be replaced as a whole: name a folder inside it, "
                f"such as {place / 'out'}"
            )
        if mount.is_relative_to(place):
            raise OutputError(f"there is a mount point inside the output, {mount}: choose another folder")
    if os.path.isdir(place) and _current().is_relative_to(place):
        raise OutputError(
            f"{place} holds the current folder and cannot be replaced as a whole: name a folder inside it, "
            f"such as {place / 'out'}, or run lpc from elsewhere"
        )


def _current() -> Path:
    """The current folder; the root's if it has been removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path("/")


def _mounts(place: Path) -> list[Path]:
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return [place] if os.path.ismount(place) else []
    return [Path(os.fsdecode(_unescaped(line.split(b" ")[4]))) for line in lines]


def _unescaped(name: bytes) -> bytes:
    """A path as mountinfo spells it, with blanks and backslashes in octal."""
    return re.sub(rb"\\(\d{3})", lambda match: bytes([int(match[1], 8)]), name)


def check_apart(place: Path, replaced: frozenset[str], reads: Sequence[str | Path], writes: Sequence[Path]) -> None:
    """Raise OutputError if the output would take away what the command reads, or lies inside it, or the other way
    round with what it writes besides."""
    for source in (Path(os.path.realpath(each)) for each in reads if os.path.exists(each)):
        if place == source or (source.is_dir() and place.is_relative_to(source)):
            where = "is" if place == source else "lies inside"
            raise OutputError(f"the output {place} {where} what is read, {source}: choose a folder outside it")
        if source.is_relative_to(place) and source.relative_to(place).parts[0] in replaced:
            raise OutputError(
                f"what is read, {source}, lies inside the output {place} and would be replaced with it: "
                "choose another folder"
            )
    for other in (Path(os.path.realpath(each)) for each in writes):
        if other.is_relative_to(place) or place.is_relative_to(other):
            raise OutputError(
                f"{other} and the output {place} lie inside each other, and the output is written as a whole at the "
                "end: choose a folder outside it"
            )
