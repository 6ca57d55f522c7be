"""docs/families.md is what the results say, and the results are of every family."""

from __future__ import annotations

import json
from pathlib import Path

import zoo
from matrix_page import page

ROOT = Path(__file__).parents[2]


RESULTS, MODELS = (
    json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("families", "all_models")
)


def test_the_page_is_generated_from_the_results() -> None:
    assert (ROOT / "docs" / "families.md").read_text(encoding="utf-8") == page(RESULTS, MODELS)


def test_every_family_has_a_row_within_the_tolerances() -> None:
    assert [row["name"] for row in RESULTS["rows"]] == list(zoo.ZOO)
    for row in RESULTS["rows"]:
        assert row["plans"] >= 50, row["name"]
        assert row["attach"] == 0, row["name"]
        assert row["importance"] < 1e-5, row["name"]
        assert row["shrink"] < 1e-5, row["name"]
        assert row["reload_stock"] in (0, None), row["name"]
        assert row["reload_file"] in (0, None), row["name"]
        assert row["onnx"] < 1e-4, row["name"]
        for way in (row.get("default") or {}).values():
            assert way["shrink"] < 1e-5, row["name"]
            assert way["export"] < 1e-4, row["name"]
            assert {"attach", "score", "compensate", "tune"} <= set(way["passes"]) or way["criterion"] != "obs"


def test_a_row_that_is_not_like_the_results_changes_the_page() -> None:
    changed = {**RESULTS, "rows": [{**RESULTS["rows"][0], "shrink": 0.5}, *RESULTS["rows"][1:]]}
    assert page(changed, MODELS) != page(RESULTS, MODELS)


def test_of_all_model_types_none_is_wrong() -> None:
    outcomes = list(MODELS.values())
    assert not [each["model_class"] for each in outcomes if each["state"] not in ("right", "refused")]
    right = [each for each in outcomes if each["state"] == "right"]
    assert len({each["model_type"] for each in right}) >= 80
    assert all(each["worst"] < 5e-5 and each["goes"] for each in right)
    assert all(each["reason"] for each in outcomes if each["state"] == "refused")
