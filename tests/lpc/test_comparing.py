from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lpc.cli import app
from lpc.comparing import compare
from passes.errors import DataError, LpcError, MissingFileError, OptionError, OutputExistsError

DENSE = {"parameters": 100, "weight_bytes": 400, "kv_cache_bytes": 16, "macs": 90}


def written(folder: Path, ratio: float, perplexity: float, source: str = "/models/tiny", **more: Any) -> Path:
    folder.mkdir(parents=True)
    pruned = {name: round(value * (1 - ratio)) for name, value in DENSE.items()}
    values = {
        "source": {"path": source},
        "ratio": {"achieved": ratio},
        "layout": "uniform",
        "cost": {"dense": DENSE, "pruned": pruned},
        "heldout": {"measures": {"perplexity": {"dense": 5.0, "removed": 9.0, "pruned": perplexity}}},
    }
    (folder / "lpc.json").write_text(json.dumps({**values, **more}))
    return folder


def test_runs_stand_beside_the_dense_model(tmp_path: Path) -> None:
    runs = [written(tmp_path / name / "out", ratio, 5 + ratio) for name, ratio in (("a", 0.2), ("b", 0.5))]
    scores = [{"task": "arc", "metric": "acc", "fewshot": 0, "limit": None, "value": 0.4}]
    evaluation = {"runs": [{"model": model, "backend": "hf", "scores": scores} for model in ("dense", "pruned")]}
    (runs[1] / "eval.json").write_text(json.dumps(evaluation))
    limited = [{"model": "dense", "backend": "hf", "scores": [{**scores[0], "limit": 60, "value": 0.3}]}]
    (runs[0] / "eval.json").write_text(json.dumps({"runs": limited}))
    times = [
        {"model": m, "phase": "decode", "batch": 1, "tokens": 1, "past": 8, "ms_median": 2.5}
        for m in ("dense", "pruned")
    ]
    (runs[0] / "benchmark.json").write_text(json.dumps({"runs": times}))
    found = compare(runs)
    header, rows = found.rows()
    assert header == ["", "dense", "a/out", "b/out"]
    lines = {row[0]: row[1:] for row in rows}
    assert lines["parameters"] == ["100", "80", "50"]
    assert lines["held-out perplexity"] == ["5.00", "5.20", "5.50"]
    assert lines["arc acc"] == ["0.400", "–", "0.400"]
    assert lines["arc acc (first 60)"] == ["0.300", "–", "–"]
    assert lines["decode b1 t1 p8"] == ["2.50 ms", "2.50 ms", "–"]
    assert found.to_json()["quality"] == "perplexity"


def test_page_has_a_picture_a_cost_and_runs_by_name(tmp_path: Path) -> None:
    page = compare([written(tmp_path / name, 0.2, 6.0) for name in ("x&y", "z")]).page()
    assert "Held-out perplexity against parameters" in page
    assert "x&amp;y" in page
    assert "x&y" not in page.replace("x\\u0026y", "")


def test_runs_of_other_models_have_no_dense_one_in_common(tmp_path: Path) -> None:
    found = compare([written(tmp_path / "a", 0.2, 6.0), written(tmp_path / "b", 0.2, 6.0, source="/models/other")])
    assert [run.name for run in found.runs] == ["a", "b"]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    one = written(tmp_path / "a", 0.2, 6.0)
    broken, old = written(tmp_path / "b", 0.2, 6.0), written(tmp_path / "c", 0.2, 6.0, cost={})
    (broken / "lpc.json").write_text("{")
    cases: list[tuple[list[Path], type[LpcError], str]] = [
        ([one], OptionError, "at least two"),
        ([one, tmp_path / "b" / ".." / "a"], OptionError, "named twice"),
        ([one, tmp_path], MissingFileError, "is no output of lpc"),
        ([one, broken], DataError, "cannot be read"),
        ([one, old], DataError, "lacks 'pruned'"),
    ]
    for folders, error, message in cases:
        with pytest.raises(error, match=message):
            compare(folders)


def test_page_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    runs = [str(written(tmp_path / name, 0.2, 6.0)) for name in "ab"]
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(OutputExistsError, match="is there already"):
        app.app(["compare", *runs, "--html", str(tmp_path / "page.html")], standalone_mode=False)
    assert (tmp_path / "page.html").read_text() == "mine"


def test_command_prints_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(written(tmp_path / name, 0.2, 6.0)) for name in "ab"]
    with pytest.raises(SystemExit) as ended:
        app.app(["compare", *runs, "--json", "--html", str(tmp_path / "page.html")])
    assert ended.value.code == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 3
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
