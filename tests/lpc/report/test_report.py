from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaConfig

from exporters.runtimes import Verdict
from lpc.inspection import inspect
from lpc.report import BeforeAfter, HeldOut, Report, record, size_rows, speed_rows, write_manifest
from lpc.report.render import render
from lpc.report.report import Widths
from lpc.versions import versions
from passes.errors import DataError
from passes.graph import Plan
from passes.models import Parity
from passes.options import TraceOptions
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


@pytest.fixture
def report() -> Report:
    graph = trace(CONFIG)
    kept = {d.name: tuple(range(d.size // 2)) for d in graph.dimensions}
    counts = {name: len(units) for name, units in kept.items()}
    plan = Plan(
        source="0" * 64,
        family="llama",
        budget={"parameters": 0.7},
        source_parameters=graph.parameters(),
        target_parameters=graph.parameters(counts),
        kept=kept,
    )
    record = PassRecord(
        name="shrink",
        options={},
        seconds=1.5,
        peak_memory_bytes=2**20,
        modified=True,
        parity=(Parity("shrink", 2e-7, 1e-5),),
    )
    measures = {"perplexity": BeforeAfter(5.0, 50.0, 7.5), "accuracy": BeforeAfter(0.91, None, 0.875)}
    heldout = HeldOut(measures=measures, rows=10, labels=1270, context_length=128)
    return Report.of("/models/tiny", graph, plan, (record,), heldout)


def test_report_costs_are_those_of_the_plan(report: Report) -> None:
    assert report.widths == {"kv_groups": Widths(4, 2, 2, 2.0), "mlp_channels": Widths(64, 32, 32, 32.0)}
    assert report.pruned.kv_cache_bytes * 2 == report.dense.kv_cache_bytes == 2 * 2 * 4 * 8 * 4
    embedding = 272 * 32
    assert report.dense.parameters == 2 * embedding + 2 * (2 * 64 * 32 + 2 * 32 * 32 + 3 * 64 * 32 + 64) + 32


def test_report_markdown_shows_what_matters(report: Report) -> None:
    text = report.to_markdown()
    assert text.startswith("# tiny, compressed by lpc")
    for words in (
        "| perplexity | 5.00 | 50.00 | 7.50 |",
        "| accuracy | 91.0% | n/a | 87.5% |",
        "On 10 held-out sequences, 1,270 tokens in windows of 128, neither scored nor tuned on.",
        "| KV groups a layer | 4 | 2 | 0.500 |",
        "- embeddings, norms and the task's head: ",
        "KV-cache bytes a token",
        "| shrink | 2.0e-07 | 1e-05 |",
        "| shrink | 1.5 | 1 |",
    ):
        assert words in text


def test_report_without_heldout_has_no_quality_section(report: Report) -> None:
    values = {**report.to_json(), "heldout": None}
    assert "perplexity" not in render(values)
    assert "## Quality" not in render(values)


def test_report_on_rows_names_no_windows(report: Report) -> None:
    values = report.to_json()
    values["heldout"]["context_length"] = None
    assert "On 10 held-out rows, neither scored nor tuned on." in render(values)


def test_widths_that_differ_are_shown_from_least_to_most_and_absent_costs_not_at_all(report: Report) -> None:
    values = report.to_json()
    values["widths"] = {"encoder.mlp_channels": {"dense": 64, "least": 8, "most": 48, "mean": 24.0}}
    values["cost"]["dense"]["kv_cache_bytes"] = values["cost"]["pruned"]["kv_cache_bytes"] = 0
    rows = size_rows(values)
    assert rows[-1] == ["encoder MLP channels a layer", "64", "8 to 48", "0.375"]
    assert not any("KV-cache" in row[0] for row in rows)


def test_speed_rows_give_medians_and_ratio_and_mark_what_is_beyond_the_context() -> None:
    run = {"phase": "decode", "batch": 1, "tokens": 1, "past": 1024, "beyond_context": True}
    pruned = {**run, "model": "pruned", "ms_median": 1.0, "ratio": [0.4, 0.5, 0.6], "tokens_per_s": 1000.0}
    what = "decode, batch 1, 1 token, past 1024 (beyond the context: speed only)"
    rows = speed_rows({"runs": [{**run, "model": "dense", "ms_median": 2.0}, pruned]})
    assert rows == [[what, "2.00", "1.00", "0.50", "0.40–0.60", "1,000"]]
    assert speed_rows({"runs": [{**run, "model": "pruned", "ms_median": 1.0}]})[0][1:] == ["–", "1.00", "–", "–", "–"]


def test_manifest_hashes_every_file_and_refresh_brings_it_up_to_date(report: Report, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    write_manifest(tmp_path, report.to_json())
    before = json.loads((tmp_path / "lpc.json").read_text())
    assert set(before["files"]) == {"plan.json", "report.md", "report.html"}
    runs = [
        {
            "phase": "prefill",
            "batch": 1,
            "tokens": 8,
            "past": 0,
            "beyond_context": False,
            "model": "pruned",
            "ms_median": 1.0,
        }
    ]
    (tmp_path / "benchmark.json").write_text(json.dumps({"runs": runs, "skipped": [], "ratios": {}}))
    record(tmp_path)
    after = json.loads((tmp_path / "lpc.json").read_text())
    assert set(after["files"]) == {"plan.json", "report.md", "report.html", "benchmark.json"}
    assert after["files"]["report.md"] != before["files"]["report.md"]
    assert after["passes"] == before["passes"]
    assert "onnxruntime, milliseconds" in (tmp_path / "report.md").read_text()


def test_report_of_a_saved_model_says_where_it_runs(report: Report) -> None:
    verdict = Verdict(target="Triton", runs="partly", reason="a | b", source="README.md")
    text = replace(report, compatibility=(verdict,)).to_markdown()
    assert "## Where it runs" in text
    assert "| Triton | partly, by rule, not run here | a \\| b | README.md |" in text
    assert "## Where it runs" not in report.to_markdown()


def test_a_manifest_from_before_there_were_verdicts_is_still_rendered(report: Report) -> None:
    values = {name: value for name, value in report.to_json().items() if name != "compatibility"}
    assert render(values) == report.to_markdown()


def test_refresh_outside_an_output_does_nothing(tmp_path: Path) -> None:
    record(tmp_path)
    assert not list(tmp_path.iterdir())


def test_broken_json_beside_the_manifest_is_named(report: Report, tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text("{")
    with pytest.raises(DataError, match=r"eval\.json is not valid JSON"):
        write_manifest(tmp_path, report.to_json())


def test_versions_name_the_packages_that_had_a_hand_in_it() -> None:
    assert {"python", "torch", "transformers", "onnxruntime", "peft", "lm-eval"} <= set(versions())


def test_inspect_states_the_largest_ratio_and_what_a_unit_costs(tmp_path: Path) -> None:
    CONFIG.save_pretrained(tmp_path)
    found = inspect(tmp_path)
    groups, channels = found.widths
    assert (found.model_class, found.task) == ("LlamaForCausalLM", "causal-lm")
    assert (groups.units, groups.dimensions, channels.units) == (4, 2, 64)
    assert groups.unit_parameters == 2 * 16 * 32 + 2 * 8 * 32
    assert channels.unit_parameters == 3 * 32
    assert found.multiple == 8
    smallest = 2 * 272 * 32 + 2 * (groups.unit_parameters + 8 * channels.unit_parameters + 64) + 32
    assert found.largest_ratio == pytest.approx(1 - smallest / found.cost.parameters, abs=1e-4)
    assert found.largest_ratio <= 1 - smallest / found.cost.parameters


def test_inspect_shows_the_hidden_size_when_asked(tmp_path: Path) -> None:
    CONFIG.save_pretrained(tmp_path)
    with_it, without = (inspect(tmp_path, TraceOptions(hidden=hidden)) for hidden in (True, False))
    hidden = with_it.widths[-1]
    assert with_it.widths[:-1] == without.widths
    assert (hidden.width, hidden.dimensions, hidden.units, hidden.least, hidden.fixed) == ("hidden", 1, 32, 8, None)
    attention, mlp, norms = 64 + 32 + 32 + 64, 3 * 64, 2
    assert hidden.unit_parameters == 2 * 272 + 2 * (attention + mlp + norms) + 1
    assert with_it.prunable == 1.0
    assert with_it.largest_ratio > without.largest_ratio
    assert "model.layers.0.self_attn.o_proj.weight axis 0 × 1" in hidden.slices
