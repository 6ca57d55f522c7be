"""Output folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from passes.errors import LpcError, OutputError, OutputExistsError

HASH_CHUNK_BYTES = 1 << 20


def check_output(folder: Path, *, force: bool) -> None:
    """Raise OutputError early, before hours of work, if the folder cannot be written or already holds something."""
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file; name a folder for the output")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise OutputExistsError(
            f"the output folder {folder} is not empty; choose another one, or pass --force (force=True)"
        )
    parent = next(path for path in folder.absolute().parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"cannot write to {parent}; choose a folder that you may write to")


@contextmanager
def staged_folder(folder: Path, *, force: bool = False, owned: Collection[str] = ()) -> Iterator[Path]:
    """A folder beside ``folder`` to write into, which takes its place when the block ends well.

    If the block fails, nothing is left behind and an existing ``folder`` stays as it was. With ``force`` the entries of
    an existing folder that are written anew or belong to an older output (``owned`` among them) are replaced; foreign
    files are carried over.
    Raises OutputExistsError, or OutputError when the disk refuses.
    """
    folder = folder.absolute()
    check_output(folder, force=force)
    _remove_abandoned(folder)
    stage = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        stage.mkdir(parents=True)
        yield stage
        _open_to_readers(stage)
        _swap(stage, folder, owned)
    except OSError as error:
        if isinstance(error, LpcError):
            raise
        raise OutputError(f"could not write {folder}: {error.strerror or error}; nothing was left behind") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


OWNED = {
    "adapter",
    "plan.json",
    "scores.safetensors",
    "lpc.json",
    "report.md",
    "benchmark.json",
    "eval.json",
    "family.json",
    "curve.svg",
    "dense-onnx",
}
"""Top-level names of an lpc output beside those of its exporters; with ``force`` these are replaced as a whole."""

RATIO = re.compile(r"0\.\d+")
"""The folder of one model of a family, itself an lpc output."""


def is_owned(entry: Path) -> bool:
    """Whether an entry of an output is lpc's own, beside the folders of exporters."""
    return entry.name in OWNED or (RATIO.fullmatch(entry.name) is not None and (entry / "lpc.json").is_file())


def _swap(stage: Path, folder: Path, owned: Collection[str]) -> None:
    if not folder.exists():
        stage.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    folder.rename(old)
    stage.rename(folder)
    for entry in old.iterdir():
        goes = entry.name in owned or is_owned(entry)
        if not goes and not (folder / entry.name).exists():
            entry.rename(folder / entry.name)
    shutil.rmtree(old, ignore_errors=True)


def _open_to_readers(stage: Path) -> None:
    """Give files the user's default mode; safetensors writes them readable by the owner only, so no server could."""
    mask = os.umask(0)
    os.umask(mask)
    for path in stage.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _remove_abandoned(folder: Path) -> None:
    """Remove stages of processes that were killed while writing to the same folder."""
    for stage in folder.parent.glob(f".{folder.name}.partial-*"):
        pid = stage.name.rpartition("-")[2]
        if pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(stage, ignore_errors=True)


def _is_running(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def sha256(path: Path) -> str:
    """The file's sha256, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either the old one or whole. Raises OutputError when the disk refuses."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"could not write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
