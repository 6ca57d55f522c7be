"""What a run keeps on its way, so that it can be gone on from: the outcomes of passes that cost much to make again.

Each pass of a pipeline has a folder in the run's. What it needs to go on from the middle of its work lies there while
it works; when it is done, its outcome takes the place of that: what the pass itself kept, and ``done.json`` with the
pass's record and the sha256 of each file. The outcome appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from passes.errors import MissingFileError, OptionError
from passes.models import Parity
from passes.pipeline.context import RunContext
from passes.pipeline.framework import Pass, PassResult
from passes.pipeline.plain import plain
from passes.pipeline.program import Program
from passes.pipeline.reading import read_as
from passes.pipeline.records import PassRecord
from passes.ranks import on_first, told_by_first

logger = logging.getLogger(__name__)

OUTCOME, DONE = "outcome", "done.json"


def through(each: Pass, program: Program, run: RunContext) -> PassResult:
    """Run one pass, or take the outcome that lies in the folder ``run.checkpoints``; what is worth it is kept there.

    An outcome that is not whole is passed over. Of several ranks the first one keeps, and all go on from what it finds.
    Raises OptionError for one of other options, MissingFileError on a rank that does not see the first one's files.
    """
    assert run.checkpoints is not None
    outcome = run.checkpoints / OUTCOME
    record = _record(each, run, outcome)
    if told_by_first(record is not None):
        if record is None:
            raise MissingFileError(f"{outcome} is not on this machine: put the run folder where all processes see it")
        restored = each.restore(program, outcome, record)
        logger.info("%s: taken from %s", each.name, outcome)
        return PassResult(replace(restored, history=(*restored.history, record)), record.modified, record.report)
    result = each(program, run)
    on_first(partial(_keep, each, result.program, run.checkpoints))
    return result


def _keep(each: Pass, program: Program, folder: Path) -> None:
    """Let the pass write its outcome, then remove what it worked with."""
    partial = folder / f"{OUTCOME}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if each.keep(program, partial):
        done = {"record": plain(program.history[-1]), "files": digests(partial)}
        (partial / DONE).write_text(json.dumps(done), encoding="utf-8")
        for path in partial.rglob("*"):
            _sync(path)
        shutil.rmtree(folder / OUTCOME, ignore_errors=True)
        os.rename(partial, folder / OUTCOME)
        _sync(folder)
    for path in folder.iterdir():
        if path.name != OUTCOME:
            shutil.rmtree(path, ignore_errors=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _record(each: Pass, run: RunContext, outcome: Path) -> PassRecord | None:
    """The record of the outcome that lies there; None if there is none, or it is not whole."""
    try:
        done = json.loads((outcome / DONE).read_text(encoding="utf-8"))
        told, files = done["record"], done["files"]
        whole = files == digests(outcome, without=DONE)
        parity = tuple(read_as(Parity, each_parity) for each_parity in told["parity"])
        report = None if each.reports is None else read_as(each.reports, told["report"])
        record = PassRecord(**{**told, "parity": parity, "report": report})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        logger.warning("%s cannot be read and is made again: %s", outcome / DONE, error)
        return None
    if not whole:
        logger.warning("%s is not as it was written and is made again", outcome)
        return None
    _check_options(each, json.loads(json.dumps(run.told(each.options))), record)
    return record


def _check_options(each: Pass, options: Mapping[str, Any], record: PassRecord) -> None:
    """Raise OptionError if the outcome is of another pass, or of other options."""
    other = [name for name in {**options, **record.options} if options.get(name) != record.options.get(name)]
    if record.name != each.name or other:
        what = f"another pass, {record.name!r}" if record.name != each.name else f"another {other[0]}"
        raise OptionError(f"what is kept of the pass {each.name!r} is of {what}: go on with that one, or start anew")


def digests(folder: Path, without: str = "") -> dict[str, str]:
    """The sha256 of each file in a folder, by its path in it, ascending."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != without:
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _sync(path: Path) -> None:
    """Have a file or a folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        logger.debug("%s cannot be synced", path)
    finally:
        os.close(descriptor)


def told(folder: Path) -> tuple[str, ...]:
    """The passes whose work is kept in a run's folder, in order; such as ``tune up to step 40`` where it is not done.

    Outcomes that are a record alone are not told.
    """
    found: list[str] = []
    for each in sorted(path for path in folder.glob("*") if path.is_dir()):
        name = each.name.partition("-")[2] or each.name
        steps = [int(path.name.rpartition("-")[2]) for path in each.glob("checkpoint-*") if (path / WHOLE).is_file()]
        if (each / OUTCOME / DONE).is_file():
            found += [name] if len(list((each / OUTCOME).iterdir())) > 1 else []
        elif steps:
            found.append(f"{name} up to step {max(steps)}")
        else:
            found += told(each)
    return tuple(dict.fromkeys(found))


WHOLE = "lpc_whole.json"
"""The seal of a checkpoint: it names its files with their sha256."""
