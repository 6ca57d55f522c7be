"""The output folder of a command: checked before its first step, and held until it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from exporters.files import Owned, claimed, run_folder
from lpc.cli import console
from lpc.owned import MANIFEST, OUTPUT
from passes.errors import OptionError

if TYPE_CHECKING:
    from lpc.run_folder import RunFolder


def hold(
    context: typer.Context,
    out: Path,
    *,
    force: bool,
    reads: Sequence[str | Path | None],
    writes: Sequence[Path | None] = (),
    owned: Owned = OUTPUT,
    needs_bytes: int = 0,
) -> None:
    """Hold ``out`` until the command of ``context`` ends. Raises OutputError if that cannot be, or not without loss."""
    inputs = [each for each in reads if each is not None]
    others = [each for each in writes if each is not None]
    context.with_resource(claimed(out, force=force, owned=owned, reads=inputs, writes=others, needs_bytes=needs_bytes))


def least_bytes(model: str | Path, ratio: float | None, *, onnx: bool) -> int:
    """What the output will need at least, in bytes: the kept share of the weights, once more if there is ONNX.

    0 if the weights are not here yet.
    """
    weights = sum(path.stat().st_size for path in Path(model).glob("*.safetensors")) if Path(model).is_dir() else 0
    kept = 1 - ratio if ratio is not None and 0 < ratio < 1 else 0
    return int(weights * kept * (2 if onnx else 1))


@dataclass(frozen=True, kw_only=True)
class Going:
    """Where a command keeps what it has done, and whether it must go on from there (True) or begin anew (False).

    ``beside``: the folder is the command's own, beside its output, and goes when that is complete.
    """

    folder: RunFolder
    resume: bool | None
    beside: bool


def going_on(out: Path, named: Path | None, *, resume: bool, fresh: bool, force: bool) -> Going:
    """What ``--resume`` and ``--fresh`` say of a run that makes ``out``. Raises OptionError for both."""
    from lpc.run_folder import RunFolder

    if resume and fresh:
        raise OptionError("--resume goes on with what is kept and --fresh removes it: leave one out")
    path = run_folder(out) if named is None else named
    done = out if resume and not force and _is_complete(out) and not (path / "recipe.json").is_file() else None
    asked = True if resume else False if fresh else None
    return Going(folder=RunFolder(path=path, output=done), resume=asked, beside=named is None)


def _is_complete(out: Path) -> bool:
    try:
        return not json.loads((out / MANIFEST).read_text(encoding="utf-8"))["missing"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def dropped(going: Going, *, as_json: bool) -> Iterator[None]:
    """When the block has made the output, what was kept beside it goes. An output that was there already is told."""
    from lpc.run_folder import FinishedError

    try:
        yield
    except FinishedError as finished:
        if as_json and going.folder.output is not None:
            console.print_json(json.loads((going.folder.output / MANIFEST).read_text(encoding="utf-8")))
        else:
            console.print_line(str(finished))
        sys.exit(0)
    if going.beside:
        going.folder.clear()
