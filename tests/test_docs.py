"""Every Python snippet and every ``lpc`` command of the documentation runs, in order, file by file.

A snippet may count on ``model``, ``train.txt`` and ``heldout.txt``, and on what the snippets before it in its file
(and, for outputs, in the README) have left. Blocks marked ``python`` and ``sh`` are run; one without a mark is prose.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import lpc
from exporters.onnx import PRECISIONS
from exporters.registry import EXPORTERS
from lpc.cli import app as cli
from passes.criteria import CRITERIA
from passes.families import FAMILIES
from passes.options import MEASURES
from scripts import api_page, error_page, option_tables

ROOT = Path(__file__).parent.parent
SLOW = ("docs/tutorial.md",)
"""Run by ``make test-matrix``: minutes, on the embedded model."""
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, text_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(tiny_model_folder, folder / "model")
    shutil.copy(text_file, folder / "train.txt")
    shutil.copy(text_file, folder / "heldout.txt")
    return folder


@pytest.fixture(autouse=True)
def _registries_as_before(auto_classes_as_before: None) -> Iterator[None]:
    """Pages register entries of their own."""
    with ExitStack() as stack:
        for registry in (CRITERIA, EXPORTERS, FAMILIES, MEASURES, PRECISIONS):
            stack.enter_context(registry.restored())
        yield


def _run_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", line.split())
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code, line


@pytest.mark.parametrize("page", [pytest.param(p, marks=pytest.mark.matrix if p in SLOW else ()) for p in PAGES])
def test_snippets_run(page: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    names: dict[str, object] = {}
    for language, body in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(body, page, "exec"), names)
            continue
        for line in body.splitlines():
            assert line.startswith("lpc "), f"{page}: only lpc commands can be run here, not {line!r}"
            _run_command(line.split("  #")[0], monkeypatch)


def test_readme_has_something_to_run() -> None:
    languages = [language for language, _ in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))]
    assert languages.count("python") >= 2
    assert "sh" in languages


RESULTS = re.compile(r"^<!-- results/(\S+) -->\n(.*?)\n<!-- end of results -->$", re.MULTILINE | re.DOTALL)


def test_tables_of_measurements_are_those_of_the_results() -> None:
    """``python benchmarks/tables_in_docs.py`` fills them in."""
    shown = [found for page in PAGES for found in RESULTS.findall((ROOT / page).read_text(encoding="utf-8"))]
    assert shown
    for name, table in shown:
        assert table == (ROOT / "benchmarks/results" / name).read_text(encoding="utf-8").strip(), name


def test_tables_of_options_are_those_of_the_declarations() -> None:
    """``python scripts/option_tables.py`` fills them in."""
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
    shown = [found[1] for page in pages for found in option_tables.BLOCK.finditer(page)]
    assert {"Target", "TuneOptions", "DataOptions", "OnnxOptions", "EvaluateOptions"} <= {*shown}
    for page in pages:
        assert option_tables.filled(page) == page


def test_every_error_has_an_answer_by_name() -> None:
    """``python scripts/error_page.py`` writes the page."""
    page = error_page.page()
    assert page == error_page.PAGE.read_text(encoding="utf-8")
    assert all(f"## {name}\n" in page for name in lpc._ERRORS)


def test_python_page_has_every_public_name() -> None:
    """``python scripts/api_page.py`` writes the page."""
    assert api_page.page() == api_page.PAGE.read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: lpc\.(\w+)$", api_page.page(), re.MULTILINE))
    assert {*lpc.__all__} - shown == {*lpc._ERRORS, *api_page.CONSTANTS, "__version__"}


def test_site_shows_pages_that_are_there() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    shown = re.findall(r"^ +- [^:]+: (\S+\.md)$", site, re.MULTILINE)
    assert len(shown) >= len(PAGES) // 2
    assert [each for each in shown if not (ROOT / "docs" / each).is_file()] == []


@pytest.mark.matrix
def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in json.loads((ROOT / "examples/first_steps.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "first_steps.ipynb", "exec"), names)
    assert (tmp_path / "out" / "hf" / "config.json").is_file()
