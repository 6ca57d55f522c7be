from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import altair
import pytest
import torch
from transformers import LlamaConfig

from lpc.report import BeforeAfter, HeldOut, Report, family_page
from lpc.report.layers import dimensions_kept
from lpc.report.page import run_page
from lpc.report.page.charts import run_charts, trade_offs
from lpc.report.page.verdict import lines, sentence
from passes.graph import Plan, PruningGraph
from passes.models import Parity
from passes.pipeline import PassRecord
from passes.trace import trace

CONFIG = LlamaConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=8,
    vocab_size=272,
)
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"

ARC = {"task": "arc", "metric": "acc", "fewshot": 0, "limit": None}


class Elements(HTMLParser):
    """Collects tags with their attributes, and the text of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def graph() -> PruningGraph:
    return trace(CONFIG)


@pytest.fixture
def plan(graph: PruningGraph) -> Plan:
    kept = {d.name: tuple(range(d.size // 2)) for d in graph.dimensions}
    return Plan(
        source="0" * 64,
        family="llama",
        budget={"parameters": 0.7},
        source_parameters=graph.parameters(),
        target_parameters=graph.parameters({name: len(units) for name, units in kept.items()}),
        kept=kept,
    )


@pytest.fixture
def manifest(graph: PruningGraph, plan: Plan) -> dict[str, Any]:
    record = PassRecord(
        name="shrink",
        options={},
        seconds=1.5,
        peak_memory_bytes=2**20,
        modified=True,
        parity=(Parity("shrink", 2e-7, 1e-5),),
    )
    heldout = HeldOut(measures={"perplexity": BeforeAfter(5.0, 50.0, 7.5)}, rows=10, labels=1270)
    scores = {d.name: torch.arange(1, d.size + 1, dtype=torch.float32) for d in graph.dimensions}
    values = Report.of("/models/tiny", graph, plan, (record,), heldout, scores=scores).to_json()
    values["passes"].append(
        {
            "name": "tune",
            "options": {},
            "seconds": 9.0,
            "peak_memory_bytes": 2**30,
            "report": {
                "losses": [[1, 2.5], [2, 2.25]],
                "rates": [[1, 0.01], [2, 0.005]],
                "events": [
                    {"step": 0, "widths": {"kv_groups": 4}, "revived": 0},
                    {"step": 1, "widths": {"kv_groups": 2}, "revived": 3},
                ],
            },
        }
    )
    return values


def family() -> dict[str, Any]:
    return {
        "source": "/models/tiny",
        "family": "llama",
        "layout": "uniform",
        "quality": "perplexity",
        "members": [
            {
                "ratio": ratio,
                "folder": str(ratio) if ratio else None,
                "parameters": 100,
                "weight_bytes": 400,
                "measures": {"perplexity": 5 + ratio},
                "latency_ms": {"decode, past 8": 2 - ratio},
            }
            for ratio in (0.0, 0.2, 0.4)
        ],
    }


@pytest.mark.parametrize("which", ["run", "family"])
def test_a_page_loads_nothing_from_anywhere(which: str, manifest: dict[str, Any]) -> None:
    page = run_page(manifest) if which == "run" else family_page(family(), ["", "perplexity"], [["dense", "5.00"]])
    elements = Elements()
    elements.feed(page)
    places = [attributes.get("src") or attributes.get("href") or "" for _, attributes in elements.found]
    assert [place for place in places if place and place != "data:,"] == []
    policy = next(a["content"] for _, a in elements.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "@import" not in page
    assert len(page.encode()) < 3_000_000


def test_strings_of_a_model_stay_text(manifest: dict[str, Any]) -> None:
    manifest["source"]["path"] = f"/models/{HOSTILE.replace('/', '')}"
    manifest["notes"] = [HOSTILE]
    manifest["heldout"] = {**(manifest["heldout"] or {"measures": {}, "rows": 1, "labels": 1, "context_length": None})}
    manifest["heldout"]["completions"] = [{"prompt": HOSTILE, "dense": HOSTILE, "pruned": HOSTILE}]
    manifest["missing"] = {HOSTILE: HOSTILE}
    manifest["untouched"] = {HOSTILE: HOSTILE}
    manifest["passes"][0]["name"] = HOSTILE
    page = run_page(manifest)
    elements = Elements()
    elements.feed(page)
    assert [tag for tag, _ in elements.found if tag == "img"] == []
    assert len([tag for tag, _ in elements.found if tag == "script"]) == 5
    assert "alert(1)</script>" not in page


def test_what_pictures_show_is_what_the_manifest_says(manifest: dict[str, Any]) -> None:
    found = {chart.name: chart.spec for chart in run_charts(manifest)}
    assert list(found) == [
        "kept",
        "importance-kv_groups",
        "importance-mlp_channels",
        "loss",
        "rate",
        "removed",
        "revived",
        "seconds",
        "memory",
    ]
    rows = _rows(found["kept"])
    assert [(row["layer"], row["width"], row["kept"]) for row in rows][:2] == [
        ("0", "KV groups", "2 of 4"),
        ("0", "MLP channels", "32 of 64"),
    ]
    assert [row["value"] for row in _rows(found["loss"])] == [2.5, 2.25]
    assert [row["value"] for row in _rows(found["rate"])] == [0.01, 0.005]
    assert [row["share"] for row in _rows(found["removed"])] == [1.0, 0.5]
    assert [row["value"] for row in _rows(found["revived"])] == [0, 3]
    assert {row["seconds"] for row in _rows(found["seconds"])} == {1.5, 9.0}


def test_no_picture_is_drawn_of_what_was_not_measured(graph: PruningGraph, plan: Plan) -> None:
    values = Report.of("/models/tiny", graph, plan, (), None).to_json()
    assert [chart.name for chart in run_charts(values)] == ["kept"]
    assert 'data-chart="loss"' not in run_page(values)


def test_specifications_are_inside_and_are_json(manifest: dict[str, Any]) -> None:
    page = run_page(manifest)
    text = re.search(r'<script type="application/json" id="specs">(.*?)</script>', page, re.DOTALL)
    assert text is not None
    specs = json.loads(text[1])
    assert set(re.findall(r'data-chart="([^"]+)"', page)) == set(specs)


def test_the_scripts_beside_the_page_are_those_that_altair_writes_for() -> None:
    page = run_page(Report.of("/m/t", trace(CONFIG), _whole(trace(CONFIG)), (), None).to_json())
    major = altair.VEGALITE_VERSION.split(".")[0]
    assert re.search(rf'"{major}\.\d+\.\d+"', page)


def test_the_cut_is_the_greatest_score_that_went(graph: PruningGraph, plan: Plan) -> None:
    scores = {d.name: torch.arange(d.size, dtype=torch.float32) for d in graph.dimensions}
    for each in dimensions_kept(graph, plan, scores):
        assert each.kept == each.dense // 2
        assert each.cut == each.dense - 1
        assert each.importance is not None
        assert each.importance[0] == 0
        assert each.importance[-1] == each.dense - 1


def test_the_verdict_says_what_it_cost(manifest: dict[str, Any]) -> None:
    text = sentence(manifest)
    assert f"{manifest['ratio']['achieved']:.1%} of the parameters are gone" in text
    assert "held-out perplexity went from 5.00 to 7.50" in text
    assert "1 proof passed" in text


def test_a_change_for_the_worse_is_marked(manifest: dict[str, Any]) -> None:
    by_name = {line.what: line for line in lines(manifest, None, None)}
    assert (by_name["held-out perplexity"].change, by_name["held-out perplexity"].good) == ("+50.0 %", False)
    assert by_name["parameters"].good is True


@pytest.mark.parametrize(("value", "good"), [(0.30, False), (0.395, None), (0.5, True)])
def test_a_task_is_better_or_worse_only_beyond_its_errors(
    manifest: dict[str, Any], value: float, good: bool | None
) -> None:
    runs = [
        {
            "model": name,
            "backend": "hf",
            "texts": [],
            "scores": [{**ARC, "value": v, "stderr": 0.01, "samples": 100}],
        }
        for name, v in (("dense", 0.4), ("pruned", value))
    ]
    line = next(each for each in lines(manifest, None, {"runs": runs}) if each.what == "arc acc")
    assert line.good is good
    assert line.dense == "0.400 ± 0.010"


@pytest.mark.parametrize(("p", "good"), [(0.13, None), (0.01, False)])
def test_a_paired_task_is_worse_only_where_chance_would_hardly_do_it(
    manifest: dict[str, Any], p: float, good: bool | None
) -> None:
    models = (("dense", "hf", 0.4), ("pruned", "hf", 0.39), ("pruned", "onnx", 0.388))
    runs = [
        {"model": m, "backend": b, "texts": [], "scores": [{**ARC, "value": v, "stderr": 0.03, "samples": 100}]}
        for m, b, v in models
    ]
    said = {"difference": -0.012, "stderr": 0.008, "p_value": p, "points": True, "higher_is_better": True}
    paired = {**ARC, **said, "model": "pruned", "backend": "onnx"}
    found = {each.what: each for each in lines(manifest, None, {"runs": runs, "differences": [paired]})}
    assert found["arc acc, onnx"].change == f"worse by 1.2 ± 0.8 points, p = {p}"
    assert found["arc acc, onnx"].good is good
    assert found["arc acc"].change == "−1.0 points"


def test_trade_offs_have_a_picture_a_cost() -> None:
    found = trade_offs(family())
    assert [chart.name for chart in found] == ["trade-0", "trade-1", "trade-2"]
    assert [row["cost"] for row in _rows(found[2].spec)] == [2.0, 1.8, 1.6]


def _rows(spec: Any) -> list[dict[str, Any]]:
    layers = [spec, *spec.get("layer", ())]
    data = next(layer["data"] for layer in layers if "data" in layer)
    if "values" in data:
        return list(data["values"])
    return list(spec["datasets"][data["name"]])


def _whole(graph: PruningGraph) -> Plan:
    kept = {d.name: tuple(range(d.size)) for d in graph.dimensions}
    return Plan(
        source="0" * 64,
        family="llama",
        budget={"parameters": 1.0},
        source_parameters=graph.parameters(),
        target_parameters=graph.parameters(),
        kept=kept,
    )
