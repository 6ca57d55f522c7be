from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from conftest import SIZES, build_model
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import lpc
from lpc.source import load_source
from passes.errors import ModelError, OptionError, TokenizerError, UnsupportedModelError
from passes.options import LoraOptions
from passes.pipeline import RunContext, caller_state_kept
from passes.trace import trace


class ValueHead(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.pretrained_model = model


def half_a_head() -> nn.Module:
    model = build_model("llama", tie_word_embeddings=False)
    model.get_output_embeddings().to(torch.bfloat16)
    return model


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**SIZES))


def offloaded() -> nn.Module:
    return cpu_offload(build_model("llama"), torch.device("cpu"))  # type: ignore[no-any-return]


def with_its_own_adapter() -> nn.Module:
    model = build_model("llama")
    try:
        model.add_adapter(LoraConfig(r=4, target_modules=["q_proj"]))
    except ValueError as error:  # transformers 5.24 wants a peft that is not out
        pytest.skip(str(error))
    return model


def with_a_compiled_layer() -> nn.Module:
    model: Any = build_model("llama")
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.DataParallel(build_model("llama")), r"DataParallel.*hand over the LlamaForCausalLM.*model\.module"),
        (lambda: torch.compile(build_model("llama"), backend="eager"), r"OptimizedModule.*model\._orig_mod"),
        (lambda: ValueHead(build_model("llama")), r"ValueHead.*model\.pretrained_model"),
        (lambda: nn.Linear(2, 2), "Linear: hand over a transformers model"),
        (lambda: None, "the model is None: hand over"),
        (lambda: 7, "type int: hand over"),
        (lambda: LlamaConfig(), "type LlamaConfig: hand over"),
        (lambda: build_model("llama").state_dict(), "type OrderedDict: hand over"),
        (lambda: "", "names no model"),
        (lambda: "a\0b", "names no model"),
        (half_a_head, r"several dtypes \(model.embed_tokens.weight is float32, lm_head.weight is bfloat16\)"),
        (on_meta, "is on the meta device, it has no values"),
        (offloaded, "is offloaded.*load the model whole"),
        (with_its_own_adapter, "carries by itself.*hand over the PeftModel"),
        (with_a_compiled_layer, r"model\.layers\.0\._orig_mod"),
    ],
)
def test_what_is_no_model_is_named_with_what_to_hand_over(make: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load_source(make())


def test_a_model_that_is_compiled_in_place_is_taken() -> None:
    model = build_model("llama")
    model.compile(backend="eager")
    assert type(load_source(model).model) is LlamaForCausalLM


def test_a_head_that_is_not_the_embedding_is_kept_although_the_configuration_ties_it() -> None:
    model: Any = build_model("llama")
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    copied: Any = load_source(model).model
    assert not copied.config.tie_word_embeddings
    assert torch.equal(copied.lm_head.weight, model.lm_head.weight)
    assert model.config.tie_word_embeddings


def test_hooks_stay_on_the_callers_model_and_are_not_called() -> None:
    calls: list[int] = []
    model: Any = build_model("llama")
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    model.train()
    copied: Any = load_source(model).model
    found = copied(input_ids=torch.tensor([[1, 2]]), output_hidden_states=True)
    assert not calls
    assert len(found.hidden_states) == 3
    assert len(model.model.layers[0]._forward_hooks) == 1
    assert model.training


@pytest.mark.parametrize("pad", [-1, 9999])
def test_a_classifier_that_pads_with_no_token_is_refused(pad: int) -> None:
    model = zoo.build("llama-sequence-classification")
    model.config.pad_token_id = pad
    with pytest.raises(ModelError, match=f"pad_token_id is {pad}, which is none of the .* tokens"):
        load_source(model)


def test_a_model_that_accelerate_spread_over_devices_is_copied_onto_one(caplog: pytest.LogCaptureFixture) -> None:
    spread, tokens = build_model("llama"), torch.arange(8)[None]
    expected = spread(tokens).logits
    for layer in spread.model.layers:
        add_hook_to_module(layer, AlignDevicesHook(execution_device="meta"))
    spread.hf_device_map = {"model.embed_tokens": 0, "model.layers": 1}
    copied = load_source(spread).model
    assert "a copy that lies on one" in caplog.text
    assert torch.equal(copied(tokens).logits, expected)
    assert all("forward" not in vars(module) and not hasattr(module, "_hf_hook") for module in copied.modules())
    assert not hasattr(copied, "hf_device_map")
    assert all(hasattr(layer, "_hf_hook") for layer in spread.model.layers)
    assert spread.hf_device_map == {"model.embed_tokens": 0, "model.layers": 1}


def test_a_causal_model_with_the_old_padding_of_llama_is_taken() -> None:
    model = build_model("llama")
    model.config.pad_token_id = -1
    assert load_source(model).model is not None


def test_a_class_without_a_loss_is_refused_with_the_one_that_has_it() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = DeiTForImageClassificationWithTeacher(DeiTConfig(**sizes, image_size=8, patch_size=4))
    with pytest.raises(UnsupportedModelError, match=r"has no loss.*load it as DeiTForImageClassification, which does"):
        load_source(model)


def test_a_tokenizers_class_is_no_tokenizer() -> None:
    with pytest.raises(TokenizerError, match=r"the tokenizer is <class .*AutoTokenizer"):
        load_source(build_model("llama"), PreTrainedTokenizerFast)  # type: ignore[arg-type]


def test_a_tokenizers_name_is_no_tokenizer() -> None:
    with pytest.raises(TokenizerError, match=r"the tokenizer is 'gpt2'.*AutoTokenizer"):
        load_source(build_model("llama"), "gpt2")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: lpc.Target(ratio="0.2"), r"ratio must be a number, got '0.2' \(str\)"),  # type: ignore[arg-type]
        (lambda: lpc.Target(ratio=True), r"ratio must be a number, got True \(bool\)"),
        (lambda: lpc.Target(ratio=0.2, min_heads=1.5), "min_heads must be a whole number"),  # type: ignore[arg-type]
        (lambda: lpc.TuneOptions(steps="2"), "steps must be a whole number, got '2'"),  # type: ignore[arg-type]
        (lambda: LoraOptions(rank=None), "rank must be a whole number, got None"),  # type: ignore[arg-type]
    ],
)
def test_an_option_that_is_no_number_is_named(make: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        make()


def test_numbers_of_numpy_are_numbers() -> None:
    assert lpc.TuneOptions(steps=np.int64(3), learning_rate=np.float32(0.1)).steps == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [np.float32(0.25), Fraction(1, 4)])
def test_a_ratio_of_another_kind_of_number_is_that_ratio(ratio: Any) -> None:
    assert lpc.Target(ratio=ratio).wanted.parameters == 0.75


def test_inference_mode_is_left_inside_and_is_there_again_afterwards() -> None:
    with torch.inference_mode():
        with caller_state_kept():
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
        assert torch.is_inference_mode_enabled()


def test_autocast_is_off_inside_and_on_again_afterwards() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        with caller_state_kept():
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")


def test_a_decorated_function_leaves_the_process_as_it_was() -> None:
    @caller_state_kept()
    def disturb() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        torch.set_default_dtype(torch.bfloat16)
        torch.set_grad_enabled(False)
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("high")
        raise KeyError

    def state() -> list[Any]:
        numbers = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
        flags = [torch.get_default_dtype(), torch.is_grad_enabled(), torch.backends.cudnn.deterministic]
        return [*numbers, *flags, torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()]

    before = state()
    for _ in range(2):
        with pytest.raises(KeyError):
            disturb()
        assert state() == before


ROPE = {"rope_theta": 10000.0, "factor": 4.0}


@pytest.mark.parametrize(
    "changes",
    [
        {"use_cache": False},
        {"rope_parameters": {"rope_type": "dynamic", **ROPE}},
        {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, **ROPE}},
    ],
)
def test_what_depends_on_the_inputs_values_is_traced_as_without_it(changes: dict[str, Any]) -> None:
    if "longrope" in str(changes):
        changes["rope_parameters"]["original_max_position_embeddings"] = 32
    config = LlamaConfig(**{**SIZES, **changes})
    before = config.to_dict()
    assert trace(config).dimensions == trace(LlamaConfig(**SIZES)).dimensions
    assert config.to_dict() == before


def test_a_peft_model_with_two_active_adapters_is_merged_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    model = get_peft_model(build_model("llama"), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    model.add_adapter("second", LoraConfig(r=4, target_modules=["k_proj"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])
    source = load_source(model)
    ids = torch.tensor([[1, 2, 3]])
    assert type(source.model) is LlamaForCausalLM
    torch.testing.assert_close(source.model(ids).logits, model.eval()(ids).logits)
    assert "2 active adapters (default, second)" in source.notes[0]
    assert source.notes[0] in caplog.text


def test_an_idle_adapter_is_left_out_of_the_copy_and_said_so() -> None:
    model = get_peft_model(build_model("llama"), LoraConfig(r=4, target_modules=["q_proj"]))
    model.add_adapter("second", LoraConfig(r=4, target_modules=["k_proj"]))
    source: Any = load_source(model)
    assert list(source.model.peft_config) == ["default"]
    assert list(model.peft_config) == ["default", "second"]
    assert "second" in source.notes[0]


def test_what_a_class_keeps_in_fp32_is_there_though_the_live_model_was_rounded_as_a_whole() -> None:
    model = zoo.build("llama").to(torch.bfloat16)
    model._keep_in_fp32_modules_strict = {"o_proj"}
    dtypes = {name: parameter.dtype for name, parameter in load_source(model).model.named_parameters()}
    kept = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert kept == {f"model.layers.{layer}.self_attn.o_proj.weight" for layer in range(2)}
    assert model.model.layers[0].self_attn.o_proj.weight.dtype == torch.bfloat16
    again = load_source(load_source(model).model, run=RunContext(dtype="bf16")).model
    assert {name for name, each in again.named_parameters() if each.dtype == torch.float32} == kept
