"""The soak draws by number alone, sorts outcomes, and its table is that of its lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lpc
from benchmarks import soak
from benchmarks.mutation_table import table as mutation_table

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def line(place: int, rss: int, **changes: Any) -> dict[str, Any]:
    said = {"family": "llama", "verdict": "right", "said": "", "parity": {}, "seconds": 1.0}
    return {**said, "place": place, "rss": rss, **changes}


def test_a_round_is_drawn_by_its_number_and_seed_alone() -> None:
    assert soak.drawn(7, 0) == soak.drawn(7, 0)
    assert len({str(soak.drawn(number, seed)) for number in range(20) for seed in (0, 1)}) == 40


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (lpc.OptionError("no such budget"), "refused"),
        (lpc.PostconditionError("another number"), "failure"),
        (lpc.PassError("pass 'tune' failed"), "failure"),
        (IndexError("out of range"), "failure"),
        (AssertionError("over the budget"), "failure"),
    ],
)
def test_only_a_refusal_at_the_door_is_no_failure(
    error: Exception, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(case: soak.Round) -> lpc.Result:
        raise error

    monkeypatch.setattr(soak, "compressed", fail)
    outcome = soak.tried(soak.drawn(0, 0), 0)
    assert (outcome.verdict, outcome.said) == (verdict, f"{type(error).__name__}: {error}")


def test_memory_grows_by_the_slope_within_processes_not_between_them() -> None:
    grows = [line(place, 1000 + 10 * place) for place in range(5)]
    fresh = [line(place, 9000 + 10 * place) for place in range(5)]
    assert soak.slope(grows + fresh) == pytest.approx(10)
    assert soak.slope([line(0, 5), line(1, 7)]) == 0


def test_the_results_are_what_their_lines_say() -> None:
    found = json.loads((RESULTS / "soak.json").read_text(encoding="utf-8"))
    lines = found.pop("lines")
    assert soak.summary(lines) == found
    assert soak.table(found) == (RESULTS / "soak.md").read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("path", sorted(RESULTS.glob("mutations-*.json")), ids=lambda path: path.stem)
def test_the_table_of_planted_faults_is_that_of_its_file(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert mutation_table(result) == path.with_suffix(".md").read_text(encoding="utf-8").strip()
    assert result["missed"] == 0


def test_a_fault_that_a_later_pass_caught_is_not_counted() -> None:
    said = "shrink: relative difference 0e+00 <= 8e-06"
    clean = {"planted_in": None, "fault": "nothing planted", "caught_by": None, "said": said}
    late = {"planted_in": "shrink", "fault": "one bit", "caught_by": "save", "said": ""}
    text = mutation_table({"model": "tiny", "dtype": "torch.float16", "rows": [clean, late]})
    assert text.startswith("tiny, float16: 0 of 1")
    assert "| shrink | relative difference 0e+00 <= 8e-06 | one bit | 0 of 1 |" in text
