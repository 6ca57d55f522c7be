"""A budget of latency through ``compress``, with a latency model whose seconds can be counted by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import lpc
from lpc import compression
from lpc.latency import latency_for
from lpc.report import size_rows
from passes.graph import Kept, count_of
from passes.options import Workload
from passes.trace import trace

TUNE = lpc.TuneOptions(steps=6, batch_size=2, schedule=lpc.Schedule(every=1))
TEXT = lpc.DataOptions(sequence_length=32)
CONSTANT, A_GROUP, A_CHANNEL = 0.5, 0.25, 0.125


class Counted:
    """Seconds of two layers with 4 KV groups and 64 channels."""

    def seconds(self, kept: Kept) -> float:
        """See ``LatencyModel``."""
        names = [f"layers.{layer}.{kind}" for layer in (0, 1) for kind in ("kv_groups", "mlp_channels")]
        full = {name: 4 if name.endswith("kv_groups") else 64 for name in names}
        counts: Mapping[str, int] = {name: count_of(kept.get(name, full[name])) for name in names}
        return CONSTANT + sum(self.dimension_seconds(name, count) for name, count in counts.items())

    def dimension_seconds(self, name: str, count: float) -> float:
        """See ``LatencyModel``."""
        return count * (A_GROUP if name.endswith("kv_groups") else A_CHANNEL)


DENSE = CONSTANT + 2 * (4 * A_GROUP + 64 * A_CHANNEL)


@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_report_predicts_dense_and_pruned_when_the_budget_limits_latency(
    layout: str, tiny_model_folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "latency_for", lambda *_: Counted())
    budget = lpc.Budget(latency=0.5, at=Workload(batch=2, prefill=16, decode=4))
    result = lpc.compress(tiny_model_folder, text_file, budget=budget, layout=layout, tune=TUNE, data_options=TEXT)
    latency = result.report.latency
    assert latency is not None
    counts = result.plan.counts()
    groups = sum(count for name, count in counts.items() if name.endswith("kv_groups"))
    channels = sum(count for name, count in counts.items() if name.endswith("mlp_channels"))
    assert latency.dense_s == DENSE
    assert latency.pruned_s == CONSTANT + A_GROUP * groups + A_CHANNEL * channels <= 0.5 * DENSE
    values = result.report.to_json()
    assert values["latency"] == {
        "workload": "2x16+4",
        "runtime": "onnxruntime-cpu",
        "dense_s": DENSE,
        "pruned_s": latency.pruned_s,
    }
    row = ["predicted ms of 2x16+4 (onnxruntime-cpu)", "18,500.000", f"{1000 * latency.pruned_s:,.3f}"]
    assert [*row, f"{latency.pruned_s / DENSE:.3f}"] in size_rows(values)


def test_report_says_nothing_of_latency_when_the_budget_does_not(tiny_llama: PreTrainedModel) -> None:
    rows = [list(range(32))] * 24
    report = lpc.compress(tiny_llama, rows, ratio=0.3, tune=TUNE, data_options=TEXT).report
    assert report.to_json()["latency"] is None
    assert not any("predicted" in row[0] for row in size_rows(report.to_json()))
    budget = lpc.Budget(parameters=0.5)
    assert latency_for(tiny_llama, trace(tiny_llama.config, torch.float32), budget) is None
