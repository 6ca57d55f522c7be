"""Private names of torch, transformers and accelerate, one by one: a failure here says which has moved."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import zoo
from moved import Named
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from passes.models import compact_class, vendor

named = partial(Named, mend="passes/models/vendor.py")


def config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(config())


def test_from_config_builds_the_class_with_what_is_asked_for() -> None:
    with named("transformers", "PreTrainedModel._from_config"):
        model = vendor.from_config(LlamaForCausalLM, config(), attention="eager", dtype=torch.bfloat16)
        assert type(model) is LlamaForCausalLM
        assert model.dtype == torch.bfloat16
        assert vendor.attention_of(model.config) == "eager"


def test_from_config_initialises_nothing_when_told_so() -> None:
    with named("transformers", "initialization.no_init_weights"):
        started = torch.get_rng_state()
        vendor.from_config(LlamaForCausalLM, config(), initialised=False)
        untouched = torch.get_rng_state()
        vendor.from_config(LlamaForCausalLM, config())
        assert torch.equal(started, untouched)
        assert not torch.equal(started, torch.get_rng_state())


def test_classes_for_names_the_class_of_an_auto_class() -> None:
    with named("transformers", "AutoModel._model_mapping"):
        assert vendor.classes_for("AutoModelForCausalLM", config()) == (LlamaForCausalLM,)
        assert vendor.classes_for("AutoModelForImageClassification", config()) == ()


def test_the_cache_goes_into_a_model_and_comes_out_of_it_by_whatever_name_it_has() -> None:
    with named("transformers", "the argument and the output 'cache', or 'past_key_values'"):
        model, ids, cache = llama(), torch.ones(1, 3, dtype=torch.int64), DynamicCache()
        output = model(input_ids=ids, use_cache=True, **vendor.with_cache(model, cache))
        assert vendor.cache_of(output) is cache
        assert cache.get_seq_length() == 3


def test_names_by_model_type_finds_the_class() -> None:
    with named("transformers", "modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"):
        assert vendor.names_by_model_type("MODEL_FOR_CAUSAL_LM_MAPPING")["llama"] == "LlamaForCausalLM"
        assert vendor.names_by_model_type("MODEL_MAPPING")["llama"] == "LlamaModel"


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_of_reads_what_the_public_setter_wrote(implementation: str) -> None:
    with named("transformers", "PreTrainedConfig._attn_implementation"):
        model = llama()
        model.set_attn_implementation(implementation)
        assert vendor.attention_of(model.config) == implementation


def test_experts_of_reads_what_the_public_setter_wrote() -> None:
    with named("transformers", "PreTrainedConfig._experts_implementation"):
        model = zoo.build("mixtral", num_hidden_layers=1)
        model.set_experts_implementation("eager")
        assert vendor.experts_of(model.config) == "eager"


def test_forget_quantizer_leaves_a_model_that_saves_as_dense(tmp_path: Path) -> None:
    with named("transformers", "PreTrainedModel.hf_quantizer, is_quantized"):
        model = llama()
        model.hf_quantizer, model.quantization_method, model.is_quantized = object(), "gguf", True
        model.config._is_quantized = True
        vendor.forget_quantizer(model)
        assert "hf_quantizer" not in vars(model)
        assert not model.is_quantized
        model.save_pretrained(tmp_path)
        assert not AutoConfig.from_pretrained(tmp_path).to_dict().get("_is_quantized")
        model.to(torch.bfloat16)  # refused for what is quantised


def test_loss_named_is_the_loss_of_the_models() -> None:
    with named("transformers", "loss.loss_utils.LOSS_MAPPING"):
        assert vendor.loss_named("ForCausalLM") is llama().loss_function
        for name in ("ForQuestionAnswering", "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"):
            assert callable(vendor.loss_named(name))


def test_cached_or_none_finds_a_file_or_none(tmp_path: Path) -> None:
    with named("transformers", "cached_file(_raise_exceptions_for_missing_entries)"):
        (tmp_path / "a.json").write_text("{}", encoding="utf-8")
        assert vendor.cached_or_none(str(tmp_path), "a.json") == str(tmp_path / "a.json")
        assert vendor.cached_or_none(str(tmp_path), "b.json") is None


def experts() -> Any:
    model = zoo.build("mixtral", num_hidden_layers=1)
    return model, [module for module in model.modules() if vendor.is_expert_stack(module)]


def test_inside_unvalued_a_number_of_a_tensor_without_values_is_zero() -> None:
    with named("torch", "aten._local_scalar_dense, utils._python_dispatch.TorchDispatchMode"):
        mask = torch.ones(2, 3, dtype=torch.int64, device="meta")
        with vendor.Unvalued():
            assert bool((mask == 1).all()) is False
            assert mask.sum().item() == 0
            assert (torch.ones(2) == 1).all()
        with pytest.raises(RuntimeError):
            mask.sum().item()


def test_is_expert_stack_finds_the_experts_of_a_layer() -> None:
    with named("transformers", "has_gate, has_bias, is_transposed, _apply_gate of stacked experts"):
        model, found = experts()
        assert found == [model.model.layers[0].mlp.experts]


def test_gated_is_the_gate_times_the_value() -> None:
    with named("transformers", "_apply_gate of stacked experts"):
        (stack,) = experts()[1]
        hidden = torch.randn(3, stack.gate_up_proj.shape[1], generator=torch.Generator().manual_seed(0))
        gate, value = hidden.chunk(2, -1)
        torch.testing.assert_close(vendor.gated(stack, hidden), functional.silu(gate) * value)


def test_register_experts_makes_a_function_the_implementation() -> None:
    with named("transformers", "integrations.moe.ALL_EXPERTS_FUNCTIONS"):
        called = []

        def none_of_them(stack: nn.Module, hidden: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            called.append(stack)
            return torch.zeros_like(hidden)

        model, found = experts()
        vendor.register_experts("lpc_test", none_of_them)
        model.set_experts_implementation("lpc_test")
        model(torch.arange(4)[None])
        assert called == found


def test_stays_in_fp32_says_what_a_class_keeps_there() -> None:
    with named("transformers", "PreTrainedModel._keep_in_fp32_modules"):
        assert all(hasattr(PreTrainedModel, name) for name in vendor.IN_FP32)
        model, name = zoo.build("t5"), "encoder.block.0.layer.1.DenseReluDense.wo.weight"
        assert vendor.stays_in_fp32(model, name, torch.float16)
        assert not vendor.stays_in_fp32(model, name, torch.bfloat16)
        assert not vendor.stays_in_fp32(llama(), "model.layers.0.mlp.down_proj.weight", torch.float16)
        model._keep_in_fp32_modules_strict = {"DenseReluDense.wo"}
        assert vendor.stays_in_fp32(model, name, torch.bfloat16)
        assert not vendor.stays_in_fp32(model, name, torch.float32)


def test_let_capture_again_brings_captured_outputs_back() -> None:
    with named("transformers", "_output_capturing_hooks_installed"):
        model = llama().eval()
        model.set_attn_implementation("eager")
        ids = torch.arange(4)[None]
        assert model(ids, output_attentions=True).attentions
        for module in model.modules():
            for hooks in vendor.hooks_of(module):
                hooks.clear()
            vendor.let_capture_again(module)
        assert model(ids, output_attentions=True).attentions


def test_recompute_activations_switches_it_on_and_off() -> None:
    with named("transformers", "activation_checkpointing_enable, gradient_checkpointing"):
        model = zoo.build("llama")
        for on in (True, False):
            vendor.recompute_activations(model, on=on)
            assert all(layer.gradient_checkpointing is on for layer in model.model.layers)


def test_second_shell_has_the_same_layers_and_a_place_of_its_own() -> None:
    with named("torch", "Module._modules"):
        model = get_peft_model(zoo.build("llama"), LoraConfig(target_modules=["q_proj"]))
        shell = vendor.second_shell(model)
        assert [*map(id, shell.parameters())] == [*map(id, model.parameters())]
        shell.base_model = torch.nn.Identity()
        assert not [*shell.parameters()]
        assert [*model.parameters()]


def test_hooks_of_finds_each_kind_of_hook() -> None:
    with named("torch", "Module._forward_hooks and the like"):
        module = nn.Linear(2, 2)
        module.register_forward_hook(lambda *_: None)
        module.register_forward_pre_hook(lambda *_: None)
        module.register_full_backward_hook(lambda *_: None)
        module.register_full_backward_pre_hook(lambda *_: None)
        assert len(list(vendor.hooks_of(module))) == 4
        assert all(hasattr(module, name) for name in vendor.HOOKS)


def test_is_wrapped_knows_the_inside_of_torch_compile() -> None:
    with named("torch", "_orig_mod"):
        compiled = torch.compile(nn.Sequential(nn.Linear(2, 2)), backend="eager")
        assert any(vendor.is_wrapped(name) for name, _ in compiled.named_modules())


def test_is_wrapped_knows_the_inside_of_fsdp() -> None:
    with named("torch", "_fsdp_wrapped_module"):
        from torch.distributed.fsdp import fully_sharded_data_parallel

        assert fully_sharded_data_parallel.FSDP_WRAPPED_MODULE in vendor.WRAPPED


def test_is_offloaded_knows_the_hook_of_accelerate() -> None:
    with named("accelerate", "_hf_hook"):
        from accelerate.hooks import ModelHook, add_hook_to_module

        module = nn.Linear(2, 2)
        assert not vendor.is_offloaded(module)
        assert vendor.is_offloaded(add_hook_to_module(module, ModelHook()))


def test_added_factor_is_the_alpha_that_autograd_saved() -> None:
    with named("torch", "AddBackward0._saved_alpha"):
        value = torch.ones(2, requires_grad=True)
        assert vendor.added_factor(torch.add(value, value, alpha=3).grad_fn) == 3
        assert vendor.added_factor((value + 1).grad_fn) == 1


def test_names_that_the_file_beside_checkpoints_needs_are_there() -> None:
    with named("transformers", "conversion_mapping, is_custom_code, per_layer_config (passes/models/resized.py)"):
        from transformers import conversion_mapping

        assert conversion_mapping.get_checkpoint_conversion_mapping("NoSuchForCausalLM") is None
        assert callable(conversion_mapping.register_checkpoint_conversion_mapping)
        assert LlamaForCausalLM.is_custom_code() is False
        assert compact_class(LlamaForCausalLM).is_custom_code() is False
        layered = LlamaConfig(**{**config().to_dict(), "per_layer_config": {0: {"intermediate_size": 8}}})
        assert layered.is_heterogeneous
        assert layered.per_layer_config[0].intermediate_size == 8
        assert "intermediate_size" in layered.per_layer_attributes
        layered.allow_global_per_layer_attribute_access = True
        assert layered.intermediate_size == 24


def test_stock_transformers_has_the_auto_classes_that_the_code_names() -> None:
    with named("transformers", "AutoModelFor..."):
        assert hasattr(transformers, "AutoModelForPreTraining")


def test_names_of_peft_that_reading_an_adapter_needs_are_there() -> None:
    with Named("peft", "ParamWrapper, get_base_layer, lora_A", "passes/models/adapter.py"):
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer
        from peft.tuners.tuners_utils import BaseTunerLayer

        model = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"], r=2))
        (layer,) = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        assert isinstance(layer, LoraLayer)
        assert isinstance(layer.get_base_layer(), nn.Linear)
        assert layer.lora_A["default"].weight.shape == (2, 16)
        assert layer.scaling["default"] == LoraConfig().lora_alpha / 2


def test_names_of_peft_that_reading_an_adapter_on_experts_needs_are_there() -> None:
    with Named("peft", "ParamWrapper.parameter_name, get_param", "passes/models/adapter.py"):
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import ParamWrapper

        model = zoo.build("mixtral", num_hidden_layers=1)
        weight = model.model.layers[0].mlp.experts.down_proj
        worn = get_peft_model(model, LoraConfig(target_modules=[], target_parameters=["mlp.experts.down_proj"], r=2))
        (layer,) = [module for module in worn.modules() if isinstance(module, ParamWrapper)]
        assert layer.parameter_name == "down_proj"
        assert layer.get_param() is weight


def mixtral() -> PreTrainedModel:
    return zoo.build("mixtral")


def test_the_loader_is_asked_what_it_makes_of_stored_tensors_and_to_do_it(tmp_path: Path) -> None:
    with named("transformers", "core_model_loading.rename_source_key, convert_and_load_state_dict_in_model"):
        model = mixtral()
        model.save_pretrained(tmp_path)
        stored = load_file(tmp_path / "model.safetensors")
        empty = vendor.from_config(type(model), model.config).to("meta")
        made_of = vendor.loaded_as(empty, stored)
        name = next(name for name, (parts, converted) in made_of.items() if converted and len(parts) > 2)
        vendor.load_some(empty, {part: stored[part] for part in made_of[name][0]})
        assert torch.equal(empty.get_parameter(name), model.get_parameter(name))
        assert made_of["lm_head.weight"] == (["lm_head.weight"], False)


def test_what_is_saved_of_one_tensor_is_its_part_of_what_is_saved(tmp_path: Path) -> None:
    with named("transformers", "core_model_loading.revert_weight_conversion, remove_tied_weights_from_state_dict"):
        model = mixtral()
        model.save_pretrained(tmp_path)
        stored, kept = load_file(tmp_path / "model.safetensors"), vendor.without_tied(model)
        pieces = {part: t for name, each in kept.items() for part, t in vendor.as_saved(model, {name: each}).items()}
        assert pieces.keys() == stored.keys()
        assert all(torch.equal(pieces[name], tensor) for name, tensor in stored.items())
        assert "lm_head.weight" not in vendor.without_tied(zoo.build("qwen3"))
