"""The script of the GPU rows waits for a machine: until then its calls stay those that the benchmarks understand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from passes.algebra import Way

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPT = (BENCHMARKS / "gpu.sh").read_text(encoding="utf-8").replace("\\\n", " ")
ROWS = re.findall(r"^ *row (\S+) \d+ .*?benchmarks/(\w+\.py)(.*)$", SCRIPT, re.MULTILINE)


@pytest.mark.parametrize(("name", "script", "words"), ROWS, ids=[row[0] for row in ROWS])
def test_a_row_calls_a_benchmark_with_options_that_it_has(name: str, script: str, words: str) -> None:
    source = (BENCHMARKS / script).read_text(encoding="utf-8")
    for flag in re.findall(r"--[a-z-]+", words):
        assert f'add_argument("{flag}"' in source, f"row {name}: {script} has no {flag}"


def test_each_row_names_ways_and_sizes_that_there_are() -> None:
    assert {row[0] for row in ROWS} == {"scoring", "scoring-accumulated", "true-gradient", "smollm2", "whole"}
    for default in re.findall(r"^(?:SIZE|WHOLE)=\$\{\w+:-(\w+)\}$", SCRIPT, re.MULTILINE):
        assert any(f'"{default}": {{' in (BENCHMARKS / each).read_text() for each in ("cost.py", "scoring.py"))
    source = (BENCHMARKS / "scoring.py").read_text(encoding="utf-8")
    for ways in re.findall(r"--ways (\S+)", SCRIPT):
        assert all(f'"{way}"' in source or way in {each.value for each in Way} for way in ways.split(","))
