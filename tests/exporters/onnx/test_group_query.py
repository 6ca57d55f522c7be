"""GroupQueryAttention: what its graph says, where it cannot, and what each of its checks finds."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import zoo
from conftest import build_model, build_tokenizer
from onnx_workbench import call, difference, exported, open_session, run_onnx
from transformers import PreTrainedModel

from exporters.calls import OnnxFolder
from exporters.onnx import OnnxPackage, check_configuration, check_parity, export_onnx
from exporters.onnx.session import OnnxModel
from exporters.onnx.verify.causal import verify_onnx
from exporters.options import OnnxOptions
from passes.errors import PostconditionError, UnsupportedModelError
from passes.options import TraceOptions
from passes.shrink import build_compact
from passes.trace import trace


def nodes(package: OnnxPackage, kind: str) -> list[onnx.NodeProto]:
    graph = onnx.load(str(package.folder / "model.onnx"), load_external_data=False).graph
    return [each for each in graph.node if each.op_type == kind]


def logits(model: PreTrainedModel, ids: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(ids).logits.numpy()


def test_every_layer_says_its_own_heads(tmp_path: Path) -> None:
    model = build_model("llama", head_dim=16)
    graph = trace(model.config, model_type=type(model), options=TraceOptions(custom_code=True))
    kept = {d.name: tuple(range(d.size)) for d in graph.dimensions} | {"layers.1.kv_groups": (0, 2)}
    package = export_onnx(build_compact(model, graph, kept), build_tokenizer(), tmp_path, OnnxOptions())
    heads = [{each.name: each.i for each in node.attribute} for node in nodes(package, "GroupQueryAttention")]
    assert [(each["num_heads"], each["kv_num_heads"]) for each in heads] == [(8, 4), (4, 2)]
    assert (package.plain_attention, package.no_genai) == (None, None)
    assert next(each for each in package.parity if each.name == "genai greedy tokens").value == 0


def test_package_says_that_the_cache_is_written_in_place_and_positions_counted() -> None:
    _, package = exported("mistral with window, gqa")
    described = json.loads((package.folder / "genai_config.json").read_text(encoding="utf-8"))
    assert described["search"]["past_present_share_buffer"] is True
    assert "position_ids" not in {*OnnxFolder.find(package.folder).inputs, *described["model"]["decoder"]["inputs"]}
    assert OnnxFolder.find(package.folder).bounded
    assert not OnnxFolder.find(exported("llama")[1].folder).bounded
    assert "fit the graph" in check_configuration(package.folder)


def test_a_written_package_is_compared_with_its_model_as_at_the_export() -> None:
    model, package = exported("mistral with window, gqa")
    found = list(check_parity(model, package.folder, "fp32"))
    assert found[: len(package.parity) - 1] == list(package.parity[:-1])
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[1].self_attn.k_proj.weight[3] += 0.05
    with pytest.raises(PostconditionError, match=r"present\.1\.key"):
        list(check_parity(other, package.folder, "fp32"))


def test_verification_crosses_the_window_of_the_operator() -> None:
    model, package = exported("mistral with window, gqa")
    other = build_model("mistral", head_dim=16, sliding_window=6)
    other.load_state_dict(model.state_dict())
    with pytest.raises(PostconditionError, match=r"present\.1\.key"):
        verify_onnx(other, OnnxModel(package.folder / "model.onnx"), 1e-4)


def test_a_padded_chunk_behind_a_past_is_what_its_real_tokens_are_alone() -> None:
    model, package = exported("mistral with window, gqa")
    mask = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 0, 1]])
    ids = torch.arange(30, 39)[None]
    first = run_onnx(package.folder, ids[:, :4], mask[:, :4])
    second = run_onnx(package.folder, ids[:, 4:8], mask[:, :8], first)
    third = run_onnx(package.folder, ids[:, 8:], mask, second)
    found = np.concatenate([each["logits"] for each in (first, second, third)], axis=1)
    assert difference(found[mask.bool().numpy()], logits(model, ids[mask.bool()][None])[0]) < 1e-5


def test_onnxruntime_refuses_a_chunk_of_two_rows_behind_a_past() -> None:
    _, package = exported("llama, gqa")
    ids, mask = torch.arange(30, 42).view(2, 6), torch.ones(2, 6, dtype=torch.int64)
    first = run_onnx(package.folder, ids[:, :3], mask[:, :3])
    with pytest.raises(Exception, match="batch_size must be 1 when sequence_length > 1 and past context is given"):
        run_onnx(package.folder, ids[:, 3:], mask, first)


def test_a_cache_with_room_for_more_gives_what_one_of_the_text_gives() -> None:
    model, package = exported("llama, gqa")
    session, ids = open_session(package.folder / "model.onnx"), torch.arange(30, 38)[None]
    room = {each.name: np.zeros((1, each.shape[1], 20, 16), np.float32) for each in session.get_inputs()[2:]}
    first = call(session, {"input_ids": ids[:, :7], "attention_mask": np.ones((1, 7), np.int64), **room})
    past = {name.replace("present", "past_key_values"): each for name, each in first.items()}
    step = call(session, {**past, "input_ids": ids[:, 7:], "attention_mask": np.ones((1, 8), np.int64)})
    assert {each.shape[2] for name, each in step.items() if name != "logits"} == {20}
    assert difference(step["logits"][0, -1], logits(model, ids)[0, -1]) < 1e-5


@pytest.mark.parametrize("precision", ["bf16", "int4", "fp16"])
def test_angles_keep_their_type_where_weights_are_stored_in_less(precision: str, tmp_path: Path) -> None:
    model, options = build_model("qwen3", head_dim=16), OnnxOptions(precision=(precision,))
    package = export_onnx(model, build_tokenizer(), tmp_path, options)
    computed = ir.DataType.FLOAT16 if precision == "fp16" else ir.DataType.FLOAT
    stored = ir.load(tmp_path / "model.onnx").graph.initializers
    assert {stored[f"rotary_{each}"].dtype for each in ("cos", "sin")} == {computed}
    assert (package.plain_attention, package.no_genai) == (None, None)


@pytest.mark.parametrize(
    ("changes", "options", "why"),
    [
        ({"head_dim": 16}, {"attention": "plain"}, "as asked"),
        ({"head_dim": 24}, {}, "heads of 24 values"),
    ],
)
def test_package_says_why_its_attention_is_plain(
    changes: dict[str, int], options: dict[str, str], why: str, tmp_path: Path
) -> None:
    asked = OnnxOptions(greedy_prompts=0, **options)
    package = export_onnx(build_model("llama", **changes), build_tokenizer(), tmp_path, asked)
    assert why in (package.plain_attention or "")
    assert not nodes(package, "GroupQueryAttention")


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("llama", "layer 0 has heads of 8 values"),
        ("gemma", "no graph builder is known to fit the model type 'gemma'"),
        ("bert", "it is no causal language model"),
    ],
)
def test_what_cannot_have_it_is_refused_where_it_is_asked_for(model: str, why: str, tmp_path: Path) -> None:
    made = build_model("llama") if model == "llama" else zoo.build(model)
    with pytest.raises(UnsupportedModelError, match=f"no graph with GroupQueryAttention: {why}"):
        export_onnx(made, build_tokenizer(), tmp_path, OnnxOptions(attention="gqa"))
