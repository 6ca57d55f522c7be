from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import build_model
from onnx_workbench import CASES, difference, exported, run_onnx
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from exporters.onnx import export_onnx, why_not_builder
from exporters.onnx.session import OnnxModel
from exporters.onnx.verify.causal import verify_onnx
from exporters.options import OnnxOptions
from passes.errors import OptionError, PostconditionError, TokenizerError, UnsupportedModelError

QUICK = OnnxOptions(greedy_prompts=0)


def torch_logits(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """Without any cache or padding: the real tokens of each row alone; zeros where there is padding."""
    logits = torch.zeros(*ids.shape, model.config.vocab_size)
    for row, real in enumerate(mask.bool()):
        with torch.no_grad():
            logits[row, real] = model(ids[row, real][None], use_cache=False).logits[0]
    return logits.numpy()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_onnx_equals_torch_on_a_padded_batch_decoded_step_by_step(case: str, padding: str) -> None:
    model, package = exported(case)
    ids = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(7))
    mask = torch.ones_like(ids)
    mask[1, :3] = int(padding == "right")
    mask[1, 5:7] = int(padding == "left")  # right padding of the prompt; the tokens that follow are real
    prompt = run_onnx(package.folder, ids[:, :7], mask[:, :7])
    step = run_onnx(package.folder, ids[:, 7:8], mask[:, :8], prompt)
    last = run_onnx(package.folder, ids[:, 8:], mask, step)
    logits = np.concatenate([each["logits"] for each in (prompt, step, last)], axis=1)
    assert difference(logits, torch_logits(model, ids, mask), mask) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_package_reports_every_verified_parity(case: str) -> None:
    model, package = exported(case)
    names = " ".join(parity.name for parity in package.parity)
    for word in ("prefill", "decode", "left padding", "right padding", "empty past", "genai greedy"):
        assert word in names
    assert all(parity.holds for parity in package.parity)
    assert package.parameters == sum(p.numel() for p in model.parameters())
    attention = model.model.layers[0].self_attn
    heads = attention.k_proj.out_features // attention.head_dim
    assert package.kv_bytes_per_token == 2 * 4 * heads * attention.head_dim * len(model.model.layers)


def test_graph_has_the_promised_names_and_dimensions() -> None:
    _, package = exported("pruned mistral")
    session = onnxruntime.InferenceSession(str(package.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    shapes = {each.name: each.shape for each in (*session.get_inputs(), *session.get_outputs())}
    cache = {f"{i}.{part}" for i in range(2) for part in ("key", "value")}
    assert shapes == {
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "total_sequence_length"],
        "position_ids": ["batch_size", "sequence_length"],
        **{f"past_key_values.{each}": ["batch_size", 3, "past_sequence_length", 8] for each in cache},
        "logits": ["batch_size", "sequence_length", 272],
        **{f"present.{each}": ["batch_size", 3, "total_sequence_length", 8] for each in cache},
    }


def test_graph_is_standard_onnx_only() -> None:
    _, package = exported("qwen3, one KV head, untied")
    model = onnx.load(str(package.folder / "model.onnx"), load_external_data=False)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 23)]


def test_folder_loads_with_stock_transformers() -> None:
    model, package = exported("pruned mistral")
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "config.json", "generation_config.json"} <= set(
        package.files
    )
    assert AutoConfig.from_pretrained(package.folder).num_key_value_heads == model.config.num_key_value_heads
    assert AutoTokenizer.from_pretrained(package.folder).encode("cat") == [66, 64, 83]


def test_export_leaves_a_training_bfloat16_model_as_it_was(
    tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = build_model("qwen2").to(torch.bfloat16).train()
    before = copy.deepcopy(model.state_dict())
    package = export_onnx(model, tiny_tokenizer, tmp_path, QUICK)
    assert model.training
    assert all(
        torch.equal(value, before[name]) and value.dtype == torch.bfloat16 for name, value in model.state_dict().items()
    )
    ids = torch.arange(6)[None]
    expected = torch_logits(copy.deepcopy(model).float().eval(), ids, torch.ones_like(ids))
    outputs = run_onnx(package.folder, ids, torch.ones_like(ids))
    assert outputs["logits"].dtype == np.float32
    assert difference(outputs["logits"], expected, torch.ones_like(ids)) < 1e-5


def test_float16_package_agrees_to_half_precision(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    package = export_onnx(
        build_model("llama"), tiny_tokenizer, tmp_path, OnnxOptions(precision=("fp16",), greedy_prompts=0)
    )
    assert {parity.tolerance for parity in package.parity} == {1e-2}
    assert 1e-5 < max(parity.value for parity in package.parity) < 1e-2


@pytest.mark.parametrize(
    ("parameter", "where"),
    [
        ("model.layers.0.self_attn.v_proj.weight", "present.0.value"),
        ("model.layers.0.mlp.up_proj.weight", "present.1.key"),
        ("model.norm.weight", "all caches agree"),
    ],
)
def test_verification_names_the_layer_when_the_graph_differs(parameter: str, where: str) -> None:
    model, package = exported("llama")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter(parameter)[0] += 0.01
    with pytest.raises(PostconditionError, match=r"onnx prefill: relative difference .* > 1e-04") as caught:
        verify_onnx(other, OnnxModel(package.folder / "model.onnx"), 1e-4)
    assert where in str(caught.value)


def test_verification_crosses_the_sliding_window() -> None:
    model, package = exported("mistral with window")
    other = build_model("mistral", sliding_window=6)
    other.load_state_dict(model.state_dict())
    with pytest.raises(PostconditionError, match=r"present\.1\.key"):
        verify_onnx(other, OnnxModel(package.folder / "model.onnx"), 1e-4)


def test_export_refuses_another_models_tokenizer(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="257 tokens but the model only 100"):
        export_onnx(
            build_model("llama", vocab_size=100, bos_token_id=1, eos_token_id=1, pad_token_id=1),
            tiny_tokenizer,
            tmp_path,
        )


def test_export_needs_the_tokenizer_of_a_causal_model(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="LlamaForCausalLM needs its tokenizer"):
        export_onnx(build_model("llama"), None, tmp_path)


def test_builder_refuses_what_it_does_not_know(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = build_model("llama", hidden_act="gelu")
    assert "gelu" in (why_not_builder(model) or "")
    with pytest.raises(UnsupportedModelError, match="gelu"):
        export_onnx(model, tiny_tokenizer, tmp_path, OnnxOptions(route="builder"))


@pytest.mark.parametrize(
    "options",
    [
        {"opset": 17},
        {"precision": ("int3",)},
        {"precision": ()},
        {"block": 48},
        {"route": "magic"},
        {"greedy_prompts": -1},
        {"greedy_tokens": 0},
    ],
)
def test_options_refuse_impossible_values(options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        OnnxOptions(**options)
