"""What is timed for a workload, and how often."""

from __future__ import annotations

from pathlib import Path

import pytest
import zoo
from conftest import build_model
from counted import READ, count_weights, exported, traced

from exporters.calls import OnnxFolder
from exporters.latency import latency_model
from exporters.latency.specimens import blocks_for
from exporters.latency.stock import StockRoute
from exporters.latency.timing import measured_latency, steps_of
from passes.errors import OptionError, UnsupportedModelError
from passes.options import Workload


def test_a_decoder_is_timed_at_one_prefill_and_at_a_token_of_mean_past() -> None:
    prefill, decode = steps_of(Workload(batch=3, prefill=10, decode=5), has_cache=True, takes_images=False)
    assert (prefill.call.key, prefill.times) == ("prefill_b3_t10_p0", 1)
    assert (decode.call.key, decode.times) == ("decode_b3_t1_p12", 5)
    (alone,) = steps_of(Workload(prefill=0, decode=4), has_cache=True, takes_images=False)
    assert alone.call.key == "decode_b1_t1_p2"
    (image,) = steps_of(Workload(batch=2, prefill=7, decode=0), has_cache=False, takes_images=True)
    assert image.call.key == "forward_b2_t0_p0"


def test_measured_latency_is_the_median_of_each_call_over_all_loadings(tmp_path: Path) -> None:
    exported(build_model("llama"), tmp_path)
    loadings = iter([[[1.0, 9.0], [2.0]], [[3.0], [4.0, 6.0]]])
    found = measured_latency(
        tmp_path, Workload(prefill=4, decode=10), threads=1, repeats=2, timer=lambda *_: next(loadings)
    )
    assert found == 3.0 + 10 * 4.0


def test_specimens_outgrow_the_cache_but_not_the_model() -> None:
    assert blocks_for(10, 10_000, 500) == 64
    assert blocks_for(100, 10_000, 500) == 10
    assert blocks_for(100, 300, 500) == 3
    assert blocks_for(10_000, 100_000, 500) == 1


def test_a_traced_graph_is_what_the_torch_road_times(tmp_path: Path) -> None:
    model = zoo.build("bert-sequence-classification")
    graph = traced(model)
    route = StockRoute(type(model), model.config, graph, 1)
    specimen = next(each for each in route.specimens() if each.key == ("mlp_channels", 32))
    specimen.write(tmp_path)
    kept = {d.name: 32 for d in graph.dimensions if d.kind == "mlp_channels"}
    assert count_weights(OnnxFolder.find(tmp_path)) == pytest.approx(graph.parameters(kept), rel=0.05)


def test_what_cannot_be_timed_is_refused_with_the_reason(tmp_path: Path) -> None:
    t5, bert = zoo.build("t5"), zoo.build("bert")
    with pytest.raises(UnsupportedModelError, match="an encoder-decoder is in two"):
        latency_model(t5, traced(t5), READ, cache=tmp_path)
    with pytest.raises(OptionError, match="decode=0, not 32"):
        latency_model(bert, traced(bert), Workload(), cache=tmp_path)
