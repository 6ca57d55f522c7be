"""What an evaluation keeps as it goes: lm-eval's own files of each task of each model, so that none is run twice.

``lm-eval/MODEL-BACKEND/TASK/`` holds lm-eval's ``results_DATE.json`` and ``samples_TASK_DATE.jsonl`` as lm-eval writes
them, and ``lpc-task.json``, a note of what they were made from. ``lm-eval/tasks/`` holds the definitions of local sets.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporters.files import write_text
from lpc.evaluation.subjects import Subject
from lpc.options import AskedTask
from passes.errors import OutputError, OutputExistsError
from passes.models import fingerprint

__all__ = ["EVALUATION", "Found", "Kept", "Note", "digest_of"]

EVALUATION = "eval.json"
HOME, NOTE = "lm-eval", "lpc-task.json"
UNREAD = ("README.md", "lpc.json")
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a result was made from (``key``, a sha256), and what lm-eval's files do not say.

    ``tokens`` are those of the text, in all documents that counted; None for a task.
    """

    key: str
    dtype: str
    prefix_token_id: int
    seconds: float
    truncated: int
    warnings: tuple[str, ...]
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What lm-eval found on one task (or group), as its files have it; samples are a list by task."""

    results: Mapping[str, Any]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    note: Note


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The folder of an evaluation."""

    folder: Path

    @property
    def tasks(self) -> Path:
        """Where definitions of local sets are."""
        return self.folder / HOME / "tasks"

    def check(self, *, force_new: bool) -> None:
        """Make sure that the folder is one for results. Raises OutputExistsError, OutputError.

        ``force_new``: it must be new, empty, or hold an evaluation already.
        """
        known = (self.folder / EVALUATION).is_file() or (self.folder / HOME).is_dir()
        if force_new and not known and self.folder.is_dir() and any(self.folder.iterdir()):
            raise OutputExistsError(f"{self.folder} holds something else than an evaluation: choose another --out")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"could not make {self.folder}: {error.strerror or error}") from error

    def place(self, subject: Subject, task: AskedTask, fewshot: int | None) -> Path:
        """The folder of a model's result of a task."""
        name = Path(task.name).stem if task.name.endswith(".jsonl") else task.name
        parts = [name.replace("/", "_")]
        parts += [f"{fewshot}shot"] if fewshot is not None else []
        parts += [f"first{task.limit}"] if task.limit is not None else []
        backend = subject.backend.replace(" ", "-")
        return self.folder / HOME / f"{subject.model}-{backend}" / ".".join(parts)

    def read(self, place: Path, key: str) -> Found | None:
        """The result that lies there, if it is whole and was made from the same."""
        try:
            values = json.loads((place / NOTE).read_text(encoding="utf-8"))
            note = Note(**{**values, "warnings": tuple(values["warnings"])})
            return _read(place, note) if note.key == key else None
        except (OSError, ValueError, TypeError, KeyError, StopIteration):
            return None

    def write(self, place: Path, found: Mapping[str, Any], subject: Subject, note: Note) -> Found:
        """Keep what lm-eval found, whole or not at all, in place of what was there. Raises OutputError."""
        from lpc.evaluation.vendor import save_as_lm_eval

        partial = place.with_name(f".{place.name}.part")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_as_lm_eval(found, partial, LM_EVAL_NAMES[subject.engine], str(subject.folder.absolute()))
            write_text(partial / NOTE, json.dumps(asdict(note), indent=1) + "\n")
            shutil.rmtree(place, ignore_errors=True)
            os.replace(partial, place)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise OutputError(f"could not write {place}: {error}") from error
        return _read(place, note)


LM_EVAL_NAMES = {"hf": "hf", "onnx": "onnxruntime", "genai": "onnxruntime-genai"}


def _read(place: Path, note: Note) -> Found:
    results = next(place.glob("results_*.json"))
    values = json.loads(results.read_text(encoding="utf-8"))
    date = results.stem.removeprefix("results_")
    samples = {}
    for task in values["n-samples"]:
        lines = (place / f"samples_{task}_{date}.jsonl").read_text(encoding="utf-8").split("\n")
        samples[task] = [json.loads(line) for line in lines if line]
    return Found(results=values, samples=samples, note=note)


def digest_of(subject: Subject) -> str:
    """sha256 of what computes the answers: weights, configuration and tokenizer."""
    found = hashlib.sha256(subject.backend.encode())
    if subject.live is not None:
        found.update(fingerprint(subject.live).encode())
    for path in sorted(subject.folder.iterdir()):
        weights = path.suffix == ".safetensors" or path.suffix == ".onnx" or path.suffix == ".data"
        if path.is_file() and path.name not in UNREAD and not (weights and subject.live is not None):
            found.update(path.name.encode())
            for chunk in _chunks(path):
                found.update(chunk)
    return found.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
