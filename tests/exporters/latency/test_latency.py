"""The latency table against counted weights: a timer whose seconds are weights makes every prediction checkable."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest
import torch
import zoo
from conftest import build_model
from counted import FREE, READ, count_weights, exported, traced, weights
from transformers import PreTrainedModel

from exporters.calls import OnnxFolder
from exporters.latency import cache as latency_cache
from exporters.latency import latency_model
from exporters.latency import model as latency
from exporters.latency import stock as latency_stock
from exporters.latency.curve import Curve
from exporters.latency.machine import Machine
from exporters.latency.specimens import Terms
from exporters.latency.table import LatencyTable
from exporters.latency.timing import WorkloadStep, measured_latency
from exporters.onnx import DATA_FILE, GraphBuilder
from passes.budget import LatencyModel
from passes.errors import OptionError, UnsupportedModelError
from passes.graph import Dimension, Kept, Kind, PruningGraph, layer_path
from passes.options import TraceOptions, Workload
from passes.shrink import build_compact

PRUNED = {"layers.0.kv_groups": 1, "layers.0.mlp_channels": 13, "layers.1.kv_groups": 3, "layers.1.mlp_channels": 40}


def compact(model: PreTrainedModel, graph: PruningGraph, kept: Kept) -> PreTrainedModel:
    resized = dataclasses.replace(graph, widths=tuple(dataclasses.replace(width, stock=()) for width in graph.widths))
    units = {d.name: kept.get(d.name, d.size) for d in graph.dimensions}
    return build_compact(model, resized, {n: range(u) if isinstance(u, int) else list(u) for n, u in units.items()})


def small_table(graph: PruningGraph) -> LatencyTable:
    curves = {
        "kv_groups": Curve((1, 2, 4), (2.0, 3.0, 5.0)),
        "mlp_channels": Curve((8, 64), (1.0, 8.0)),
    }
    return LatencyTable(READ, graph, 10.0, curves)


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor whose cache holds a few tiny blocks, timed once, so that specimens are small and few."""
    monkeypatch.setattr(Machine, "here", lambda: Machine("tiny", 2, 12_000))
    monkeypatch.setattr(latency, "REPEATS", 1)


@pytest.fixture
def llama() -> tuple[PreTrainedModel, PruningGraph]:
    model = build_model("llama")
    return model, traced(model)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_table_predicts_the_weights_of_a_pruned_model_exactly_when_weights_are_time(
    family: str, tied: bool, tmp_path: Path
) -> None:
    model = build_model(family, tie_word_embeddings=tied)
    graph = traced(model)
    table = latency_model(model, graph, READ, threads=1, cache=tmp_path / "cache", timer=weights)
    (tmp_path / "model").mkdir()
    pruned = exported(compact(model, graph, PRUNED), tmp_path / "model")
    assert table.seconds(PRUNED) == pytest.approx(count_weights(pruned))
    assert 0 < table.constant < table.dense_seconds


def test_query_heads_of_all_kv_heads_together_make_one_attention_block(tmp_path: Path) -> None:
    model = build_model("llama")
    graph = traced(model, TraceOptions(query_heads=True, custom_code=True))
    table = latency_model(model, graph, READ, threads=1, cache=tmp_path / "cache", timer=weights)
    kept = {d.name: 1 for d in graph.dimensions if d.kind == "query_heads"}
    (tmp_path / "model").mkdir()
    pruned = exported(compact(model, graph, kept), tmp_path / "model")
    assert table.seconds(kept) == pytest.approx(count_weights(pruned))


def write_weights(model: PreTrainedModel, path: Path, **_: object) -> int:
    """Instead of a traced graph, which takes seconds: one with as many weights."""
    builder, sizes = GraphBuilder(), [each.numel() for each in model.parameters()]
    builder.weight("all.weights", [torch.zeros(sum(sizes))])
    return builder.save(path, [], [], opset=23, data_file=DATA_FILE)


@pytest.mark.parametrize("name", ["bert-sequence-classification", "gpt2", "gemma2", "falcon-mqa"])
def test_the_torch_road_predicts_the_weights_of_a_pruned_model_exactly_when_weights_are_time(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency_stock, "trace_single", write_weights)
    monkeypatch.setattr(latency_stock, "trace_decoder", write_weights)
    model = zoo.build(name)
    graph = traced(model, FREE)
    table = latency_model(model, graph, READ, threads=1, cache=tmp_path, timer=weights)
    kept = {d.name: max(d.size // 2, 1) for d in graph.dimensions}
    assert table.dense_seconds == pytest.approx(graph.parameters())
    assert table.seconds(kept) == pytest.approx(graph.parameters(kept))
    layers = sum(math.prod(shape) for name, shape in graph.shapes.items() if layer_path(name) != name)
    without = {d.name: 0 for d in graph.dimensions}
    assert table.dense_seconds - table.seconds(without) == pytest.approx(layers)


def test_no_two_weights_of_a_specimen_are_equal_since_onnxruntime_would_keep_them_once(
    llama: tuple[PreTrainedModel, PruningGraph], tmp_path: Path
) -> None:
    seen: set[str] = set()

    def check(folder: OnnxFolder, steps: Sequence[WorkloadStep], threads: int) -> list[list[float]]:
        arrays = [onnx.numpy_helper.to_array(each) for each in onnx.load(str(folder.path)).graph.initializer]
        matrices = [each.tobytes() for each in arrays if each.ndim == 2 and each.dtype == "float32"]
        assert len(set(matrices)) == len(matrices)
        seen.add(folder.path.parent.name)
        return weights(folder, steps, threads)

    latency_model(*llama, READ, threads=1, cache=tmp_path, timer=check)
    assert {"empty-0", "kv_groups-1", "kv_groups-4", "mlp_channels-64"} < seen


def test_terms_add_up(llama: tuple[PreTrainedModel, PruningGraph]) -> None:
    table: LatencyModel = small_table(llama[1])
    assert table.seconds({}) == 10 + 2 * (5 + 8)
    assert table.seconds({"layers.0.kv_groups": [1, 3], "layers.1.mlp_channels": 36}) == 10 + (3 + 8) + (5 + 4.5)
    terms = (table.dimension_seconds(d.name, d.size) for d in llama[1].dimensions)
    assert table.seconds({}) == 10 + sum(terms)
    assert table.dimension_seconds("layers.0.kv_groups", 0) == 0


def depth(kind: str) -> Dimension:
    return Dimension(kind, Kind(kind), -1, 2, (), kind)


@pytest.mark.parametrize(
    ("kind", "kept", "expected"),
    [
        ("layers", [1], 10 + 3 + 8),
        ("layers", 2, 10 + 5 + 8 + 3 + 8),
        ("attention_blocks", [0], 10 + 5 + 8 + 8),
        ("mlp_blocks", [1], 10 + 5 + 3 + 8),
    ],
)
def test_layers_and_blocks_that_are_gone_take_no_time(
    llama: tuple[PreTrainedModel, PruningGraph], kind: str, kept: int | list[int], expected: float
) -> None:
    graph = dataclasses.replace(llama[1], dimensions=(*llama[1].dimensions, depth(kind)))
    table = small_table(graph)
    assert table.seconds({kind: kept, "layers.1.kv_groups": 2}) == expected
    assert table.dimension_seconds(kind, 1) == 0


def test_fewer_hidden_channels_are_not_predicted(llama: tuple[PreTrainedModel, PruningGraph]) -> None:
    table = small_table(dataclasses.replace(llama[1], dimensions=(*llama[1].dimensions, depth("hidden"))))
    assert table.seconds({"hidden": 2}) == table.dense_seconds
    with pytest.raises(UnsupportedModelError, match="1 of 2 hidden channels"):
        table.seconds({"hidden": 1})


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tables made, instead of timed."""
    made: list[str] = []

    def instead(route: object, *_: object) -> Terms:
        made.append(type(route).__name__)
        return Terms(1.0, {"kv_groups": Curve((1, 4), (1.0, 2.0)), "mlp_channels": Curve((8,), (3.0,))})

    monkeypatch.setattr(latency, "_measured", instead)
    return made


def test_a_table_is_read_from_the_cache_the_second_time(
    llama: tuple[PreTrainedModel, PruningGraph], tmp_path: Path
) -> None:
    calls: list[str] = []

    def timer(folder: OnnxFolder, steps: Sequence[WorkloadStep], threads: int) -> list[list[float]]:
        calls.append(str(folder.path))
        return weights(folder, steps, threads)

    first = latency_model(*llama, READ, threads=1, cache=tmp_path, timer=timer)
    timed = len(calls)
    again = latency_model(llama[0].config, llama[1], READ, threads=1, cache=tmp_path, timer=timer)
    assert timed > 0
    assert len(calls) == timed
    assert (again.constant, again.curves) == (first.constant, first.curves)


def test_the_blocks_that_are_timed_say_attention_as_the_package_does(tmp_path: Path) -> None:
    model, seen = build_model("llama", head_dim=16), set[str]()

    def timer(folder: OnnxFolder, steps: Sequence[WorkloadStep], threads: int) -> list[list[float]]:
        graph = onnx.load_model(str(folder.path), load_external_data=False).graph
        seen.update(node.op_type for node in graph.node if node.op_type.endswith("Attention"))
        return weights(folder, steps, threads)

    for attention, operator in (("auto", "GroupQueryAttention"), ("plain", "Attention"), ("gqa", None)):
        latency_model(model, traced(model), READ, threads=1, attention=attention, cache=tmp_path, timer=timer)
        assert seen == ({operator} if operator else set())  # auto's table is gqa's
        seen.clear()


Change = Callable[[pytest.MonkeyPatch], dict[str, object]]


def _versions(patch: pytest.MonkeyPatch) -> dict[str, object]:
    patch.setattr(latency_cache, "version", lambda package: "0.0" if package == "onnxruntime" else "1.0")
    return {}


def _machine(**changes: object) -> Change:
    def change(patch: pytest.MonkeyPatch) -> dict[str, object]:
        machine = dataclasses.replace(Machine.here(), **changes)
        patch.setattr(Machine, "here", lambda: machine)
        return {}

    return change


CHANGES: dict[str, Change] = {
    "versions": _versions,
    "processor": _machine(processor="another"),
    "cores": _machine(cores=99),
    "processor's cache": _machine(cache_bytes=1),
    "threads": lambda _: {"threads": 2},
    "dtype": lambda _: {"dtype": "fp16"},
    "batch": lambda _: {"workload": Workload(batch=2, prefill=4, decode=0)},
    "prefill": lambda _: {"workload": Workload(prefill=5, decode=0)},
    "decode": lambda _: {"workload": Workload(prefill=4, decode=1)},
    "channels": lambda _: {"model": build_model("llama", intermediate_size=72)},
    "head size": lambda _: {"model": build_model("llama", head_dim=16)},
    "layers": lambda _: {"model": build_model("llama", num_hidden_layers=3)},
    "vocabulary": lambda _: {"model": build_model("llama", vocab_size=280)},
    "family": lambda _: {"model": build_model("mistral", sliding_window=None)},
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_changes_the_speed_changes_the_key(
    what: str, counted: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def make(model: PreTrainedModel | None = None, workload: Workload = READ, **options: object) -> None:
        model = model or build_model("llama")
        latency_model(model, traced(model), workload, cache=tmp_path, **{"threads": 1, **options})

    make()
    make(**CHANGES[what](monkeypatch))
    assert len(counted) == 2
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_token_ids_and_labels_do_not_change_the_key(counted: list[str], tmp_path: Path) -> None:
    for changes in ({}, {"eos_token_id": 3, "id2label": {0: "a"}, "initializer_range": 0.5}):
        model = build_model("llama", **changes)
        latency_model(model, traced(model), READ, threads=1, cache=tmp_path)
    assert len(counted) == 1


@pytest.mark.parametrize("broken", ["", "{", "[]", "null", '{"constant": 1}', "nan", "other widths", "falling"])
def test_a_broken_cache_file_is_made_again_with_a_warning(
    broken: str,
    llama: tuple[PreTrainedModel, PruningGraph],
    counted: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def make() -> None:
        latency_model(*llama, READ, threads=1, cache=tmp_path)

    make()
    (path,) = tmp_path.glob("*.json")
    values = json.loads(path.read_text(encoding="utf-8"))
    damaged = {
        "nan": {**values, "constant": float("nan")},
        "other widths": {**values, "curves": {}},
        "falling": {**values, "curves": {**values["curves"], "kv_groups": {"counts": [1, 2], "seconds": [2, 1]}}},
    }
    path.write_text(json.dumps(damaged[broken]) if broken in damaged else broken, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        make()
    assert "is made again" in caplog.text
    make()
    assert len(counted) == 2


def test_a_cache_that_cannot_be_written_is_warned_of(
    llama: tuple[PreTrainedModel, PruningGraph], counted: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    table = latency_model(*llama, READ, threads=1, cache=tmp_path / "file" / "folder")
    assert table.constant == 1.0
    assert "could not be kept" in caplog.text


@pytest.mark.parametrize(("load", "warned"), [(2.5, True), (2.0, False)])
def test_a_busy_machine_is_warned_of_when_a_table_is_made(
    load: float,
    warned: bool,
    llama: tuple[PreTrainedModel, PruningGraph],
    counted: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    latency_model(*llama, READ, threads=1, cache=tmp_path)
    (table,) = tmp_path.glob("*.json")
    assert ("busy (load 2.5 on 2 cores)" in caplog.text and str(table) in caplog.text) == warned
    caplog.clear()
    latency_model(*llama, READ, threads=1, cache=tmp_path)
    assert "busy" not in caplog.text


def test_the_cache_lies_where_lpc_cache_says(
    llama: tuple[PreTrainedModel, PruningGraph], counted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LPC_CACHE", str(tmp_path))
    latency_model(*llama, READ, threads=1)
    assert len(list((tmp_path / "latency").glob("*.json"))) == 1


def test_impossible_requests_are_refused(llama: tuple[PreTrainedModel, PruningGraph], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="'tensorrt' cannot be measured; there is 'onnxruntime-cpu'"):
        latency_model(*llama, READ, runtime="tensorrt", cache=tmp_path)
    with pytest.raises(OptionError, match="threads must be at least 1, not 0"):
        latency_model(*llama, READ, threads=0, cache=tmp_path)
    with pytest.raises(OptionError, match="unknown precision 'int3'"):
        latency_model(*llama, READ, dtype="int3", cache=tmp_path)


def test_times_are_real_and_the_same_for_prediction_and_measurement(tmp_path: Path) -> None:
    model = build_model("llama", num_hidden_layers=1, intermediate_size=16, num_key_value_heads=2)
    graph, workload = traced(model), Workload(prefill=4, decode=2)
    (tmp_path / "model").mkdir()
    exported(model, tmp_path / "model")
    steps: list[tuple[str, int, int]] = []
    table = latency_model(
        model, graph, workload, threads=2, cache=tmp_path / "cache", progress=lambda *step: steps.append(step)
    )
    assert table.dense_seconds > table.seconds({d.name: 0 for d in graph.dimensions}) == table.constant > 0
    assert measured_latency(tmp_path / "model", workload, threads=1, repeats=1) > 0
    assert [done for _, done, _ in steps] == list(range(1, steps[-1][2] + 1))
    with pytest.raises(OptionError, match="repeats must be at least 1"):
        measured_latency(tmp_path / "model", workload, repeats=0)
