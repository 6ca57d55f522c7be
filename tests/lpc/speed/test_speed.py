from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import zoo
from conftest import build_model, build_tokenizer

from exporters.calls import Call, Graph, OnnxFolder
from exporters.calls.providers import MEMORY
from exporters.onnx import export_onnx
from exporters.options import OnnxOptions
from lpc.options import BenchmarkOptions
from lpc.report import speed_rows, unsure_line
from lpc.speed import Benchmark, benchmark
from lpc.speed.timing import time_models
from passes.errors import MissingFileError, ModelError, OptionError, UnsupportedModelError

SMALL = BenchmarkOptions(
    beyond_context=False, repeats=2, warmup=1, threads=(1,), batches=(1, 2), prefill_tokens=(6,), decode_pasts=(3, 500)
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An lpc output with half the KV heads, and the ONNX folder of the dense model."""
    root = tmp_path_factory.mktemp("benchmark")
    pruned = build_model("mistral", num_attention_heads=4, num_key_value_heads=2, sliding_window=None)
    for model, folder in ((pruned, root / "pruned" / "onnx"), (build_model("llama"), root / "dense")):
        export_onnx(model, build_tokenizer(), folder, OnnxOptions(greedy_prompts=0))
    return root / "pruned", root / "dense"


@pytest.fixture(scope="module")
def timed(folders: tuple[Path, Path]) -> tuple[Benchmark, list[tuple[str, int, int]]]:
    """A benchmark of the two, and what its progress was told."""
    seen: list[tuple[str, int, int]] = []
    return benchmark(*folders, SMALL, lambda *step: seen.append(step)), seen


def test_benchmark_writes_the_promised_json(
    folders: tuple[Path, Path], timed: tuple[Benchmark, list[tuple[str, int, int]]]
) -> None:
    pruned, (found, seen) = folders[0], timed
    written = json.loads((pruned / "benchmark.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(found.to_json()))
    assert written["schema_version"] == 2
    assert {(r["model"], r["phase"], r["batch"], r["tokens"], r["past"]) for r in written["runs"]} == {
        (model, *call)
        for model in ("dense", "pruned")
        for call in (("prefill", 1, 6, 0), ("prefill", 2, 6, 0), ("decode", 1, 1, 3), ("decode", 2, 1, 3))
    }
    for run in written["runs"]:
        assert 0 < run["ms_p10"] <= run["ms_median"] <= run["ms_p90"]
        assert run["tokens_per_s"] == pytest.approx(1000 * run["batch"] * run["tokens"] / run["ms_median"])
        assert (run["threads"], run["ratio"] is None) == (1, run["model"] == "dense")
    assert seen[-1] == ("benchmark", 30, 30)


def test_benchmark_compares_sizes_and_names_what_it_left_out(
    folders: tuple[Path, Path], timed: tuple[Benchmark, list[tuple[str, int, int]]]
) -> None:
    (pruned, dense), (found, _) = folders, timed
    assert found.ratios["kv_bytes_per_token"] == 0.5
    assert found.models["dense"].kv_bytes_per_token == 2 * 2 * 4 * 8 * 4
    sizes = {path: sum(each.stat().st_size for each in path.glob("model.onnx*")) for path in (pruned / "onnx", dense)}
    assert found.ratios["file_bytes"] == sizes[pruned / "onnx"] / sizes[dense]
    assert {"prefill_b1_t6_p0", "decode_b2_t1_p3", "load_s", "peak_memory_bytes"} <= set(found.ratios)
    assert [(each.batch, each.past) for each in found.skipped] == [(1, 500), (2, 500)]
    assert found.skipped[0].reason == "501 tokens are more than the model's context of 128"


def test_benchmark_alone_has_no_ratios_and_may_go_beyond_the_context(folders: tuple[Path, Path]) -> None:
    options = BenchmarkOptions(
        repeats=1, warmup=0, batches=(1,), prefill_tokens=(), decode_pasts=(500,), beyond_context=True
    )
    found = benchmark(folders[1], options=options)
    assert [(run.model, run.past) for run in found.runs] == [("pruned", 500)]
    assert found.runs[0].beyond_context
    assert not found.ratios
    assert not found.skipped


def test_several_numbers_of_threads_are_timed_one_after_the_other(folders: tuple[Path, Path]) -> None:
    asked = {"repeats": 1, "warmup": 0, "batches": (1,), "prefill_tokens": (), "decode_pasts": (3,)}
    found = benchmark(*folders, BenchmarkOptions(threads=(1, 2), **asked))
    assert [(run.model, run.threads) for run in found.runs if run.model == "pruned"] == [("pruned", 1), ("pruned", 2)]
    assert found.ratios["decode_b1_t1_p3"] == found.runs[1].ratio[1]
    rows = [row[0] for row in speed_rows(found.to_json())]
    assert rows == ["decode, batch 1, 1 token, past 3, 1 thread", "decode, batch 1, 1 token, past 3, 2 threads"]


def test_a_machine_that_was_too_busy_to_tell_is_said_of_the_calls_that_it_spoilt(
    timed: tuple[Benchmark, list[tuple[str, int, int]]],
) -> None:
    quiet = [replace(each, ratio=each.ratio and (0.68, 0.7, 0.72), ms_p10=1, ms_p90=9) for each in timed[0].runs]
    found = replace(timed[0], runs=tuple(quiet))
    assert not found.unsure
    assert not unsure_line(found.to_json())
    loud = replace(found, runs=(*quiet[:-1], replace(quiet[-1], ratio=(0.5, 0.7, 0.9))))
    assert loud.unsure == ("decode, batch 2, past 3, threads 1",)
    assert "too busy to tell: decode, batch 2" in unsure_line(loud.to_json())
    alone = replace(found, runs=tuple(replace(each, ratio=None) for each in quiet))
    assert len(alone.unsure) == 4 == len([run for run in found.runs if run.model == "pruned"])


def test_feeds_fit_the_graph(folders: tuple[Path, Path]) -> None:
    decoder = Graph(OnnxFolder.find(folders[0]), threads=1)
    feeds = decoder.feeds(Call(phase="decode", batch=2, tokens=1, past=3))
    assert feeds["past_key_values.1.value"].shape == (2, 2, 3, 8)
    assert feeds["attention_mask"].shape == (2, 4)
    assert feeds["position_ids"].tolist() == [[3], [3]]


def test_a_provider_that_is_not_there_is_refused_by_name(folders: tuple[Path, Path]) -> None:
    with pytest.raises(OptionError, match="no provider 'tpu' here: choose one of cpu"):
        benchmark(folders[0], options=replace(SMALL, provider="tpu"))


def test_models_are_loaded_on_the_provider_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: OnnxFolder, threads: int, provider: str) -> Graph:
        raise LookupError(provider)

    monkeypatch.setattr("lpc.speed.timing.Graph", refused)
    folders: Any = {"pruned": None}
    with pytest.raises(LookupError, match="openvino"):
        time_models(folders, [], replace(SMALL, provider="openvino"), 1, lambda _: None)


def test_a_call_computes_on_what_lies_in_the_providers_memory(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MEMORY, "CPUExecutionProvider", "cpu")
    decoder = Graph(OnnxFolder.find(folders[0]), 1, "CPUExecutionProvider")
    bound = list[onnxruntime.IOBinding]()
    monkeypatch.setattr(type(decoder.session), "run_with_iobinding", lambda _, binding: bound.append(binding))
    call = Call(phase="decode", batch=2, tokens=1, past=3)
    decoder.ready(call)()
    monkeypatch.undo()
    decoder.session.run_with_iobinding(bound[0])
    expected = decoder.session.run(None, decoder.feeds(call))
    for found, value in zip(bound[0].copy_outputs_to_cpu(), expected, strict=True):
        np.testing.assert_array_equal(found, value)


def test_benchmark_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no ONNX model in"):
        benchmark(tmp_path)


def test_benchmark_says_when_onnxruntime_refuses_the_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="cannot be read as an ONNX graph"):
        benchmark(tmp_path, options=SMALL)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packages of models without a cache: a dense and a narrower text classifier, and an image classifier."""
    root = tmp_path_factory.mktemp("single")
    models = {
        "dense": zoo.build("bert-sequence-classification", num_hidden_layers=1),
        "narrow": zoo.build("bert-sequence-classification", num_hidden_layers=1, intermediate_size=16),
        "vit": zoo.build("vit", num_hidden_layers=1),
    }
    for name, model in models.items():
        export_onnx(model, None, root / name)
    return {name: root / name for name in models}


def test_an_encoder_is_timed_at_its_one_call_within_its_context(single: dict[str, Path]) -> None:
    options = BenchmarkOptions(repeats=2, warmup=0, threads=(1,), batches=(1, 2), prefill_tokens=(8, 512))
    found = benchmark(single["narrow"], single["dense"], options)
    assert {(run.model, run.phase, run.batch, run.tokens, run.past) for run in found.runs} == {
        (model, "forward", batch, 8, 0) for model in ("dense", "pruned") for batch in (1, 2)
    }
    assert [(each.batch, each.tokens) for each in found.skipped] == [(1, 512), (2, 512)]
    assert set(found.ratios) >= {"forward_b1_t8_p0", "file_bytes"}
    assert "kv_bytes_per_token" not in found.ratios
    assert found.models["dense"].kv_bytes_per_token == 0


def test_an_encoder_for_which_every_length_is_too_long_is_timed_at_its_context(single: dict[str, Path]) -> None:
    options = BenchmarkOptions(repeats=1, warmup=0, batches=(1,), prefill_tokens=(200,))
    assert [run.tokens for run in benchmark(single["dense"], options=options).runs] == [128]


def test_an_image_model_is_timed_on_images(single: dict[str, Path]) -> None:
    found = benchmark(single["vit"], options=BenchmarkOptions(repeats=1, warmup=0, batches=(1, 3)))
    assert [(run.phase, run.batch, run.tokens, run.tokens_per_s) for run in found.runs] == [
        ("forward", 1, 0, 0),
        ("forward", 3, 0, 0),
    ]
    assert speed_rows(found.to_json())[0][0] == "forward, batch 1, 1 image a row"


def test_models_of_two_kinds_are_not_compared(single: dict[str, Path]) -> None:
    with pytest.raises(OptionError, match="not of one kind"):
        benchmark(single["vit"], single["dense"], SMALL)


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "encoder_model.onnx").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match=r"encoder_model\.onnx and decoder_model\.onnx"):
        benchmark(tmp_path)


def test_positions_from_a_table_end_and_rotary_ones_do_not(folders: tuple[Path, Path], single: dict[str, Path]) -> None:
    assert OnnxFolder.find(single["dense"]).bounded
    assert not OnnxFolder.find(folders[1]).bounded


@pytest.mark.parametrize(
    "options",
    [
        {"repeats": 0},
        {"threads": (0,)},
        {"threads": (1, 1)},
        {"batches": ()},
        {"batches": (0,)},
        {"prefill_tokens": (), "decode_pasts": ()},
    ],
)
def test_options_refuse_impossible_values(options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        BenchmarkOptions(**options)


def test_progress_is_told_turn_by_turn_and_ends(folders: tuple[Path, Path]) -> None:
    """Also where a call stops early, since it takes too long."""
    pruned, dense = folders
    for options in (SMALL, replace(SMALL, repeats=40, max_seconds=1e-9)):
        told: list[tuple[str, int, int]] = []
        benchmark(pruned, dense, options, progress=lambda *step, told=told: told.append(step))
        assert {(stage, total) for stage, _, total in told} == {("benchmark", told[0][2])}
        steps = [done for _, done, _ in told]
        assert steps == sorted(steps)
        assert (steps[0], steps[-1]) == (0, told[0][2])
        assert len(steps) > 2 + 2 * 2 * (2 + 2)
