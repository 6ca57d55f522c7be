"""What class and configuration say of the way to ONNX is said before anything is done."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers as hf
import zoo
from conftest import build_model, build_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from exporters.onnx import check_exportable, export_onnx
from exporters.options import OnnxOptions
from exporters.registry import check_exports
from passes.errors import LpcError, OptionError, TokenizerError, UnsupportedModelError
from passes.families import Family, Proof, tried
from passes.models import base_model, rope_types, weightless

DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
BUILDER = OnnxOptions(route="builder")


def refused(model: PreTrainedModel, options: OnnxOptions | None = None, **given: Any) -> str:
    processor = given.get("processor", build_tokenizer())
    with pytest.raises((TokenizerError, UnsupportedModelError)) as told:
        check_exportable(model, processor, options or OnnxOptions())
    return str(told.value)


def test_every_case_of_the_zoo_is_let_through() -> None:
    for name, case in zoo.ZOO.items():
        check_exportable(zoo.build(name), build_tokenizer() if case.task == "causal-lm" else None, OnnxOptions())


def test_a_tokenizer_that_is_missing_or_larger_is_refused() -> None:
    assert "needs its tokenizer" in refused(build_model("llama"), processor=None)
    larger = build_tokenizer()
    larger.add_tokens([f"<{index}>" for index in range(20)])
    assert "277 tokens but the model only 272" in refused(build_model("llama"), processor=larger)
    assert "277 tokens" in refused(zoo.build("bert"), processor=larger)


def test_frequencies_that_depend_on_the_length_are_refused_where_no_trace_follows_them() -> None:
    message = refused(zoo.build("llama", rope_parameters=DYNAMIC))
    assert "rope_type 'dynamic'" in message
    assert "--no-onnx" in message


def test_rope_types_are_those_of_all_types_of_layer() -> None:
    assert rope_types(zoo.build("llama").config) == ("default",)
    assert rope_types(zoo.build("bert").config) == ()
    config: Any = SimpleNamespace(rope_parameters={"full": DYNAMIC, "sliding": {"rope_type": "default"}})
    config.get_text_config = lambda: config
    assert rope_types(config) == ("dynamic", "default")


def test_the_builder_is_refused_where_it_does_not_know_the_model() -> None:
    assert "not BertForMaskedLM" in refused(zoo.build("bert"), BUILDER, processor=None)
    assert "'phi'" in refused(zoo.build("phi"), BUILDER)
    assert "'gelu' is not SiLU" in refused(build_model("llama", hidden_act="gelu"), BUILDER)
    adapted = get_peft_model(build_model("llama"), LoraConfig(target_modules=["q_proj"]))
    check_exportable(base_model(adapted), build_tokenizer(), BUILDER)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("DeepseekV2", {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
                        "v_head_dim": 8, "num_key_value_heads": 8, "num_experts_per_tok": 2},
         "computes with complex numbers"),
        ("FalconH1", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
         "plain cache: its own has layers of LinearAttentionAndFullAttentionLayer"),
        ("Olmo3", {"layer_types": ["full_attention"] * 2}, None),
    ],
)  # fmt: skip
def test_a_discovered_class_that_torch_cannot_trace_is_refused_before_any_work(
    name: str, sizes: dict[str, Any], message: str | None
) -> None:
    config = getattr(hf, f"{name}Config")(**{**zoo.GQA, **sizes})
    model = weightless(getattr(hf, f"{name}ForCausalLM"), config)
    with tried(config.model_type, Family((), proof=Proof(worst=0.0, checks=()))):
        if message is None:
            check_exportable(model, build_tokenizer(), OnnxOptions())
        else:
            assert message in refused(model)


def test_a_class_that_is_no_decoder_unless_it_is_told_to_be_one_keeps_no_cache() -> None:
    model = weightless(hf.BertLMHeadModel, zoo.ZOO["bert"].config())
    assert "BertLMHeadModel (bert) keeps no cache" in refused(model)


def test_inputs_that_no_graph_takes_are_refused() -> None:
    model = zoo.build("vit")
    model.config = SimpleNamespace(num_channels=3)
    assert "does not say image_size" in refused(model, processor=None)
    model.main_input_name = "input_values"
    assert "takes input_values" in refused(model, processor=None)


def test_the_export_itself_says_the_same(tmp_path: Path) -> None:
    model = zoo.build("llama", rope_parameters=DYNAMIC)
    with pytest.raises(UnsupportedModelError, match="rope_type 'dynamic'"):
        export_onnx(model, build_tokenizer(), tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_only_the_formats_that_are_asked_for_are_asked() -> None:
    model = build_model("llama")
    check_exports(["hf"], model, None)
    with pytest.raises(LpcError, match="needs its tokenizer"):
        check_exports(["hf", "onnx"], model, None)
    with pytest.raises(OptionError, match="nosuch"):
        check_exports(["nosuch"], model, None)


@pytest.mark.matrix
def test_a_decoder_deeper_than_its_encoder_is_verified(tmp_path: Path) -> None:
    package = export_onnx(zoo.build("t5", num_layers=1, num_decoder_layers=2), None, tmp_path / "onnx")
    assert max(each.value for each in package.parity) < 1e-4
    assert any("greedy" in each.name for each in package.parity)
