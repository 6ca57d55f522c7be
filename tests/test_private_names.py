"""What is other people's: private names only in vendor files, nothing patched, no warning silenced at large."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FILES = [path for package in ("passes", "exporters", "lpc") for path in sorted((ROOT / package).rglob("*.py"))]
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
VENDORS = {"passes/models/vendor.py", "exporters/onnx/vendor.py", "lpc/evaluation/vendor.py"}
OWN = {"passes", "exporters", "lpc"}
UNSTABLE = ("transformers.initialization", "transformers.conversion_mapping", "transformers.integrations",
            "transformers.loss", "transformers.models", "torch._dynamo", "lm_eval.models")  # fmt: skip
BESIDE_CHECKPOINTS = "passes/models/resized.py"
SETTINGS = {
    "torch.backends.cudnn.benchmark", "torch.backends.cudnn.deterministic", "torch.backends.cuda.matmul.allow_tf32",
    "torch.backends.cudnn.allow_tf32", "sys.excepthook",
}  # fmt: skip
"""Public settings that their libraries' documentation tells to set like this."""


def nodes(files: Collection[str]) -> Iterator[tuple[str, Any]]:
    """The nodes of the files' syntax trees, with the file."""
    yield from ((file, node) for file in sorted(files) for node in ast.walk(TREES[file]))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(tree: ast.Module) -> set[str]:
    """The names that a file gives to functions, classes, variables, fields and attributes of its own."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node):
            names.add(node.attr)
    return names


def is_own(node: ast.Attribute) -> bool:
    if isinstance(node.value, ast.Call):
        return isinstance(node.value.func, ast.Name) and node.value.func.id == "super"
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Private names of foreign objects that a file touches: attributes, imports, arguments, and names as text."""
    own = defined(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] not in OWN:
            if any(is_private(part) for part in [*(node.module or "").split("."), *(each.name for each in node.names)]):
                yield node.lineno, f"from {node.module}"
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, each.name) for each in node.names if any(map(is_private, each.name.split("."))))
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, each.arg) for each in node.keywords if each.arg and is_private(each.arg))
            if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr", "setattr", "delattr"):
                name = node.args[1]
                if isinstance(name, ast.Constant) and isinstance(name.value, str) and is_private(name.value):
                    yield node.lineno, name.value


def test_only_vendor_files_touch_private_names_of_others() -> None:
    found = [f"{file}:{line}: {name}" for file in TREES.keys() - VENDORS for line, name in private_names(TREES[file])]
    assert not found, f"put these behind a function in {', '.join(sorted(VENDORS))}"


def test_only_vendor_files_import_unstable_modules_of_others() -> None:
    for file, node in nodes(TREES.keys() - VENDORS - {BESIDE_CHECKPOINTS}):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
            assert not any(module.startswith(UNSTABLE) for module in modules), f"{file}:{node.lineno}: {node.module}"


def test_the_file_beside_checkpoints_imports_torch_and_transformers_only() -> None:
    imports = [node for _, node in nodes({BESIDE_CHECKPOINTS}) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {
        name.split(".")[0]
        for node in imports
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    assert modules - {"__future__", "functools", "inspect", "pathlib", "shutil", "typing"} == {"torch", "transformers"}


def test_nothing_is_mocked_and_no_warning_silenced_at_large() -> None:
    for file, node in nodes(TREES.keys()):
        if isinstance(node, ast.ImportFrom | ast.Import):
            assert "mock" not in ast.unparse(node), f"{file}:{node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.simplefilter":
            raise AssertionError(f"{file}:{node.lineno}: name the message, the category and the module that warns")
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.filterwarnings":
            assert len(node.args) >= 4, f"{file}:{node.lineno}: name the message, the category and the module"


@pytest.mark.parametrize("package", sorted(OWN))
def test_no_name_of_another_library_is_replaced(package: str) -> None:
    """Nor an attribute of an imported module set, but for public settings."""
    for file in [file for file in TREES if file.startswith(f"{package}/")]:
        modules = {
            (each.asname or each.name).split(".")[0]
            for _, node in nodes({file})
            if isinstance(node, ast.Import | ast.ImportFrom)
            for each in node.names
            if isinstance(node, ast.Import) or (node.module or "").split(".")[0] not in OWN
        }
        for _, node in nodes({file}):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                name = ast.unparse(node)
                assert name.split(".")[0] not in modules or name in SETTINGS, f"{file}:{node.lineno}: {name}"


def test_no_class_name_stands_for_two_things() -> None:
    named = Counter(node.name for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert not [name for name, times in named.items() if times > 1]


def test_the_checks_above_see_what_they_look_for() -> None:
    tree = ast.parse(
        "import torch\nfrom torch._dynamo import config\nmodel._secret\nself._own\nload(_raise=False)\n"
        "hasattr(m, '_h')\nclass Mine:\n    def _made(self): ...\n    def use(self, other): other._made()\n"
    )
    assert sorted(name for _, name in private_names(tree)) == ["_h", "_raise", "_secret", "from torch._dynamo"]
