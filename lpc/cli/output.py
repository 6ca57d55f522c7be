"""The output folder of a command: checked before its first step, and held until it ends."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.files import Owned, claimed, locked, put_in_place, run_folder
from lpc.cli import console
from lpc.owned import FAMILY, MANIFEST, RECIPE, is_complete, output
from passes.errors import FinishedError, MissingFileError, OptionError

if TYPE_CHECKING:
    from lpc.cli.words import Given
    from lpc.options import OutputOptions
    from lpc.run_folder import RunFolder
    from passes.options import TuneOptions


def hold(
    held: ExitStack,
    out: Path,
    *,
    force: bool,
    reads: Sequence[str | Path | None],
    writes: Sequence[Path | None] = (),
    owned: Owned | None = None,
    needs_bytes: int = 0,
    asked: str = "",
) -> None:
    """Hold ``out`` (by default lpc's own) until the command's stack is left. Raises OutputError if it cannot be, and
    FinishedError if a run that died has left there what is ``asked`` for.
    """
    owned = owned or output()
    inputs = [each for each in reads if each is not None]
    others = [each for each in writes if each is not None]
    said: dict[str, Any] = {"force": force, "owned": owned, "needs_bytes": needs_bytes, "asked": asked}
    held.enter_context(claimed(out, reads=inputs, writes=others, **said))


def asked_for(given: Given, reads: Sequence[str | Path | None]) -> str:
    """What a command was asked for, to be known again: its words, and what the files that it reads look like."""
    said = ((kind.__name__, *item) for kind, values in given.options.items() for item in values.items())
    words = sorted(repr(each) for each in said if each[1] not in ("force", "json"))
    files = [(str(each), _look(Path(each))) for each in reads if each is not None]
    return hashlib.sha256(repr((sorted(given.arguments.items()), words, files)).encode()).hexdigest()


def _look(path: Path) -> list[tuple[str, int, int]]:
    """Name, time of last change and size of a file, or of a folder's entries; nothing for what is not here."""
    entries = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    return [(each.name, each.stat().st_mtime_ns, each.stat().st_size) for each in entries if each.exists()]


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

    ``done``: the output is there already, and is asked for again; with ``replaces`` only if this very run made it.
    """

    path: Path
    resume: bool | None
    done: Path | None
    replaces: bool = False

    def arguments(self) -> dict[str, Any]:
        """Those of ``lpc.compress`` and ``lpc.compress_family``."""
        return {"run_folder": self.folder, "resume": self.resume}

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        from lpc.run_folder import RunFolder

        return RunFolder(path=self.path, output=self.done, replaces=self.replaces)


def going_on(output: OutputOptions, tune: TuneOptions) -> Going:
    """What the options say of a run that was cut short, and what it left: an output that it had finished is put in its
    place, and is what was asked for. Raises OptionError, MissingFileError if none was kept, OutputError.
    """
    if tune.resume and output.fresh:
        raise OptionError("--resume goes on with what is kept and --fresh removes it: leave one out")
    path = tune.checkpoints or run_folder(output.out)
    left = put_in_place(output.out) and not output.fresh
    kept = (path / RECIPE).is_file()
    done = output.out if (left or (tune.resume and not kept)) and is_complete(output.out) else None
    if tune.resume and not kept and done is None:
        raise MissingFileError(f"there is no run to go on with in {path}: leave --resume out to begin")
    resume = True if tune.resume else False if output.fresh else None
    return Going(path=path, resume=resume, done=done, replaces=output.force)


def hold_run(held: ExitStack, going: Going) -> None:
    """Hold the run folder until the command's stack is left. Raises OutputError if another process has it."""
    held.enter_context(locked(going.path, f"the run folder {going.path}"))


@contextmanager
def told_if_done(done: Path | None, *, as_json: bool) -> Iterator[None]:
    """An output that is there already is told, and the command ends well."""
    try:
        yield
    except FinishedError as finished:
        if as_json and done is not None:
            file = next((done / name for name in (MANIFEST, FAMILY) if (done / name).is_file()), None)
            package = {"out": str(done), "files": sorted(path.name for path in done.iterdir())}
            console.print_json(json.loads(file.read_text(encoding="utf-8")) if file else package)
        else:
            console.print_line(str(finished))
        sys.exit(0)
