"""Packages that bring entries, written and put on the path as an installer would."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def installed(
    folder: Path, package: str, group: str, points: dict[str, str], code: str
) -> Iterator[Callable[[str], str]]:
    """A package of one module ``package`` with that code and those entry points of the group.

    Gives a function that runs Python code in a process of its own beside it, and returns what that prints.
    """
    home = folder / package
    info = home / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (home / f"{package}.py").write_text(code, encoding="utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(home))
        importlib.invalidate_caches()
        yield lambda script: _run(script, home)


def _run(script: str, home: Path) -> str:
    path = os.pathsep.join([str(home), *sys.path])
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()
