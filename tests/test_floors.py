"""The house: arrows only downward, and a light front door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lpc

ROOT = Path(__file__).parent.parent
PACKAGES = ("passes", "exporters", "lpc")
ROOMS = sorted(
    f"{package}.{path.parent.name}" for package in PACKAGES for path in (ROOT / package).glob("*/__init__.py")
)
"""Imports between floors and rooms run downward: ``lint-imports`` keeps that (pyproject.toml)."""


def test_the_map_of_the_house_has_every_room() -> None:
    rooms = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## The way")[0]
    assert not [room for room in ROOMS if f"`{room.partition('.')[2]}/`" not in rooms]


def _room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def _imports(path: Path) -> list[ast.ImportFrom]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [
        node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_another_room_is_entered_by_its_surface(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        own = _room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for node in _imports(path):
            assert node.module is not None
            if _room(node.module) in ROOMS and _room(node.module) != own:
                assert node.module in ROOMS, f"{path}:{node.lineno}: import from {_room(node.module)}, not a file in it"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_in_a_line_and_names_its_surface(room: str) -> None:
    tree = ast.parse((ROOT / room.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    said = ast.get_docstring(tree)
    assert said
    assert "\n" not in said
    named = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    surface = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)]
    assert {*surface[0]} == named if named else not surface


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
            assert issubclass(error, ValueError | OSError | RuntimeError | MemoryError)


def test_command_line_starts_without_torch_so_that_thread_settings_still_count() -> None:
    code = "import sys, lpc.cli; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "False"
