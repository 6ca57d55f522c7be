"""The run folder: where a run keeps what it has done, so that the same command goes on after a kill at any moment."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from exporters.files import locked, write_text
from lpc.owned import RECIPE, manifests
from lpc.recipe import Recipe
from passes.errors import FinishedError, LpcError, MissingFileError, OptionError
from passes.pipeline import told
from passes.ranks import on_first, rank

logger = logging.getLogger(__name__)

EXPORTS = "exports"
OWN = re.compile(rf"{re.escape(RECIPE)}|{EXPORTS}|\d\d-\S+|0\.\d+")
"""The names of what lpc writes there."""
SHOWN = 4
"""So many differences are told."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A folder for one run at a time: its recipe, and what each pass has kept. It goes when the output is written.

    ``output``: a finished output that was asked for again; the run is not begun if it is this recipe's. ``replaces``:
    if it is another's, the run is begun, to replace it.
    """

    path: Path
    output: Path | None = None
    replaces: bool = False

    @classmethod
    def of(cls, named: str | Path | RunFolder) -> RunFolder:
        """The folder as a user names it."""
        return named if isinstance(named, RunFolder) else cls(path=Path(named))

    def begin(self, recipe: Recipe, resume: bool | None = None) -> None:
        """Begin a run of this recipe, or go on with the one that is kept; a line in the log says so.

        ``resume``: True, there must be one; False, what is kept is removed; None, it is gone on with if it is there.
        Raises OptionError if what is kept is of another recipe, naming what differs, MissingFileError if nothing is
        kept and something must be, FinishedError if the ``output`` is of this recipe.
        """
        if self.output is not None and not self._is_replaced_by(recipe):
            _check_same(recipe, _recipe_of(self.output), self.output)
            self.clear()
            raise FinishedError(f"{self.output} is finished, by this very recipe: nothing is left to do")
        if resume is False:
            self.clear()
        kept, done = _recipe_in(self.path / RECIPE), told(self.path)
        if kept is None and resume:
            raise MissingFileError(
                f"there is no run to go on with in {self.path}: leave --resume (resume) out to begin"
            )
        if kept is not None and done:
            _check_same(recipe, kept, self.path)
            logger.warning("going on with the run kept in %s: %s (--fresh starts anew)", self.path, ", ".join(done))
            return
        if kept is not None and kept.differences(recipe):
            self.clear()
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / RECIPE, json.dumps(asdict(recipe), indent=1))

    def _is_replaced_by(self, recipe: Recipe) -> bool:
        there = _recipe_of(self.output) if self.output is not None else None
        return self.replaces and (there is None or bool(there.differences(recipe)))

    def clear(self) -> None:
        """Remove what lpc wrote there, and the folder if nothing else lies in it."""
        for entry in self.path.glob("*"):
            if OWN.fullmatch(entry.name):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        with contextlib.suppress(OSError):
            self.path.rmdir()


@contextmanager
def running(folder: RunFolder | None, recipe: Recipe | None, resume: bool | None) -> Iterator[Path | None]:
    """Hold a run's folder, begin or go on as ``RunFolder.begin`` does, and say what is kept if the block is stopped.

    Of several processes the first one holds it.

    Yields the folder's path; None where nothing is kept. Raises what ``begin`` raises, and OutputError if another
    process runs there.
    """
    if folder is None or recipe is None:
        yield None
        return
    with ExitStack() as stack:
        on_first(partial(_hold, stack, folder.path))
        on_first(partial(folder.begin, recipe, resume))
        with kept_if_stopped(folder.path):
            yield folder.path


def _hold(stack: ExitStack, path: Path) -> None:
    stack.enter_context(held(path))


def held(path: Path) -> AbstractContextManager[None]:
    """A context that holds a run folder. Raises OutputError, with the holder's name, if another process does."""
    return locked(path, f"the run folder {path}")


@contextmanager
def kept_if_stopped(path: Path | None) -> Iterator[None]:
    """Hold a run folder; if the block fails or is interrupted, the error says what is kept. One without work goes."""
    if path is None:
        yield
        return
    with held(path) if rank() == 0 else nullcontext():
        try:
            yield
        except (LpcError, KeyboardInterrupt) as error:
            done = told(path)
            if done:
                error.add_note(f"kept in {path}: {', '.join(done)}; the same command goes on from there")
            elif rank() == 0:
                RunFolder(path=path).clear()
            raise


def _check_same(recipe: Recipe, kept: Recipe | None, where: Path) -> None:
    """Raise OptionError if a recipe is not the one that is kept, naming what differs."""
    if kept is None:
        raise OptionError(f"{where} does not say what it was made from: choose another output, or --force")
    found = kept.differences(recipe)
    if found:
        shown = [f"{name} ({_short(there)} there, {_short(here)} here)" for name, (there, here) in found.items()]
        more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
        raise OptionError(
            f"the run in {where} differs in {', '.join(shown[:SHOWN])}{more}: give the same again to go on with it, "
            "choose another output, or start anew with --fresh (resume=False)"
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def _recipe_of(output: Path) -> Recipe | None:
    """The recipe that an output was made by; a family's models all have the same."""
    return next((_recipe_in(file, "recipe") for file in manifests(output)), None)


def _recipe_in(path: Path, key: str | None = None) -> Recipe | None:
    """The recipe in a file; None if there is none that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Recipe.read(values if key is None else values[key])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        logger.warning("%s holds no recipe: %s", path, error)
        return None
