"""The house: arrows only downward, and a light front door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lpc

ROOT = Path(__file__).parent.parent
FORBIDDEN = {"passes": {"lpc", "exporters"}, "exporters": {"lpc"}, "lpc": set()}


def _imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_only_downward(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not _imported(path) & FORBIDDEN[package], path


def test_import_lpc_pulls_in_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, lpc; print([m for m in ('torch', 'transformers', 'onnxruntime', 'lm_eval') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


def test_all_names_what_is_importable() -> None:
    for name in lpc.__all__:
        assert getattr(lpc, name) is not None
    assert sorted(dir(lpc)) == sorted(lpc.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = lpc.nonsense


def test_every_error_is_an_lpc_error_and_a_builtin() -> None:
    errors = [getattr(lpc, name) for name in lpc.__all__ if name.endswith("Error")]
    assert len(errors) >= 14
    for error in errors:
        assert issubclass(error, lpc.LpcError)
        if error is not lpc.LpcError:
            assert issubclass(error, ValueError | OSError | RuntimeError)


def test_command_line_starts_without_torch_so_that_thread_settings_still_count() -> None:
    code = "import sys, lpc.cli; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "False"
