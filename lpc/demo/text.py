"""Text for the demo, taken from the Python installation that runs it.

Every Python carries two megabytes of English technical prose: the help topics of ``pydoc`` and the docstrings
of the standard library. They are read as source text and parsed, never imported, so nothing is executed. The
demo model (``lpc/assets/demo-model``) was trained on the train split; the held-out split is for evaluation.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import logging
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HELDOUT_ONE_IN", "MIN_CHARS", "Corpus", "corpus", "is_heldout"]

log = logging.getLogger(__name__)

HELDOUT_ONE_IN = 10
"""One document in this many is held out."""

MIN_CHARS = 40
"""Documents and paragraphs shorter than this many characters are labels, not text: too short to count."""

_TOPICS = "pydoc_data/topics.py"
_SKIPPED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_HOLDS_STATEMENTS = (ast.stmt, ast.ExceptHandler, ast.match_case)


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order; no document is in both splits, nor twice in one."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]


def corpus(stdlib: Path | None = None) -> Corpus:
    """Read, deduplicate and split the documents of a standard library (default: the running Python's).

    Documents come in the order of their SHA-256, so neighbours are unrelated and the order does not depend on
    the file system. A held-out document that shares a paragraph with a train document is dropped: help topics
    quote one another at length, and such a document would measure memory.

    Raises ``FileNotFoundError`` where the installation carries no sources (a zipped or stripped one).
    """
    root = stdlib if stdlib is not None else Path(sysconfig.get_path("stdlib"))
    texts = {_clean(text) for text in _documents(root)}
    ordered = sorted((text for text in texts if len(text) >= MIN_CHARS), key=_digest)
    train = tuple(text for text in ordered if not is_heldout(text))
    seen = {paragraph for text in train for paragraph in _paragraphs(text)}
    heldout = tuple(text for text in ordered if is_heldout(text) and seen.isdisjoint(_paragraphs(text)))
    if not train or not heldout:
        raise FileNotFoundError(f"no documented Python sources under {root}: the demo text comes from there")
    log.info("demo text: %d train and %d held-out documents from %s", len(train), len(heldout), root)
    return Corpus(train, heldout)


def is_heldout(text: str) -> bool:
    """Whether a document is held out: a function of its text alone, the same on every machine."""
    return int(_digest(text)[:8], 16) % HELDOUT_ONE_IN == 0


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _clean(text: str) -> str:
    """Drop indentation, trailing blanks, and lone surrogates, which no tokenizer takes."""
    encodable = text.encode("utf-8", "ignore").decode("utf-8")
    return "\n".join(line.rstrip() for line in inspect.cleandoc(encodable).splitlines()).strip()


def _paragraphs(text: str) -> set[str]:
    """The paragraphs of a document with whitespace normalised, short ones left out."""
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return {part for part in parts if len(part) >= MIN_CHARS}


def _documents(root: Path) -> Iterator[str]:
    """Every help topic and docstring under ``root``; files that do not parse are logged and counted."""
    failed = 0
    for path in _sources(root):
        tree = _parse(path)
        if tree is None:
            failed += 1
        elif path == root / _TOPICS:
            yield from _topics(tree)
        else:
            yield from _docstrings(tree)
    if failed:
        log.warning("demo text: %d files under %s could not be parsed and were left out", failed, root)


def _sources(root: Path) -> Iterable[Path]:
    return sorted(path for path in root.rglob("*.py") if _SKIPPED.isdisjoint(path.relative_to(root).parts))


def _parse(path: Path) -> ast.Module | None:
    """The syntax tree, or None. Bytes go in, so that ``ast`` obeys the file's own encoding line."""
    try:
        with warnings.catch_warnings():
            for kind in (DeprecationWarning, SyntaxWarning):  # Python 3.11 and 3.12: somebody's string, not our news
                warnings.filterwarnings("ignore", "invalid ", kind, re.escape(str(path.with_suffix(""))))
            return ast.parse(path.read_bytes(), filename=str(path))
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        log.info("demo text: %s left out: %s", path, error)
        return None


def _topics(tree: ast.Module) -> Iterator[str]:
    """The values of ``topics = {"name": "text", ...}``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for value in node.values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """All docstrings of a file. Expressions, which are most of a tree and hold none, are not entered."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, _DOCUMENTED):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield text
        pending.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, _HOLDS_STATEMENTS))
