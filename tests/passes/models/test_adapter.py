from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zoo
from handmade import LAYERS, graph_of, logits, relative, weights_of, worn
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    PeftModelForCausalLM,
    PeftModelForSeq2SeqLM,
    PromptTuningConfig,
    get_peft_model,
)
from peft.tuners.lora import ParamWrapper
from torch import nn
from workbench import PROJECTIONS, Blocks, adapted, build_model, randomise_adapter

from passes.errors import MissingFileError, OptionError, UnsupportedModelError
from passes.graph import Slice
from passes.models import (
    ADAPTER,
    GRADIENT,
    Adapter,
    active_adapter,
    check_adapter,
    check_adapter_folder,
    lora_config,
    lora_weights,
    module_at,
    parameter_at,
    plain_name,
    projections,
    scored_by,
)
from passes.models.adapter import lora_layers
from passes.options import LoraOptions
from passes.pipeline import Program

ALL = list(PROJECTIONS)


def lora(**changes: object) -> PeftModel:
    tied = changes.pop("tied", True)
    values = {"task_type": "CAUSAL_LM", "target_modules": ALL, "r": 4, **changes}
    return get_peft_model(build_model("llama", tie_word_embeddings=tied), LoraConfig(**values))


def two_active() -> PeftModel:
    model = lora()
    model.add_adapter("second", LoraConfig(task_type="CAUSAL_LM", target_modules=ALL))
    model.base_model.set_adapter(["default", "second"])
    return model


def merged() -> PeftModel:
    model = lora()
    model.merge_adapter()
    return model


def disabled() -> PeftModel:
    model = lora()
    model.base_model.disable_adapter_layers()
    return model


def other(config: object) -> Callable[[], PeftModel]:
    return lambda: get_peft_model(build_model("llama"), config)


REFUSED: dict[str, tuple[Callable[[], PeftModel], str]] = {
    "dora": (lambda: lora(use_dora=True), "use_dora=True"),
    "biases": (lambda: lora(bias="lora_only"), "bias='lora_only'"),
    "lora_bias": (lambda: lora(lora_bias=True), "lora_bias=True"),
    "head": (lambda: lora(modules_to_save=["lm_head"], tied=False), "modules_to_save"),
    "tokens": (lambda: lora(trainable_token_indices=[1, 2]), "trainable_token_indices"),
    "replication": (lambda: lora(layer_replication=[[0, 2], [1, 2]]), "layer_replication"),
    "activated": (lambda: lora(alora_invocation_tokens=[1, 2]), "LoRA variant"),
    "tied head": (lambda: lora(target_modules=[*ALL, "lm_head"]), "lm_head, whose weight is tied"),
    "tied embedding": (lambda: lora(target_modules=[*ALL, "embed_tokens"]), "embed_tokens, whose weight is tied"),
    "two": (two_active, "2 active adapters.*default.*second"),
    "merged": (merged, "is merged: call unmerge_adapter"),
    "disabled": (disabled, "is disabled: call enable_adapter_layers"),
    "ia3": (
        other(IA3Config(task_type="CAUSAL_LM", target_modules=ALL, feedforward_modules=["down_proj"])),
        "IA3Config",
    ),
    "loha": (other(LoHaConfig(target_modules=ALL)), "LoHaConfig"),
    "prompt": (other(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)), "PromptTuningConfig"),
}


@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")  # peft, about what is refused here
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # peft, about what is refused here
@pytest.mark.parametrize("name", REFUSED)
def test_anything_but_one_plain_lora_is_refused_at_the_start(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=message):
        Program.start(make())


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True},
        {"lora_dropout": 0.1},
        {"rank_pattern": {"q_proj": 2}},
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.up_proj.weight"]},
    ],
)
def test_plain_lora_in_all_its_forms_is_taken(changes: dict[str, object]) -> None:
    check_adapter(lora(**changes))


def test_an_inactive_second_adapter_is_no_obstacle() -> None:
    model = lora()
    model.add_adapter("second", LoraConfig(task_type="CAUSAL_LM", target_modules=ALL))
    check_adapter(model)
    assert active_adapter(model) == "default"


def test_wrapped_layers_have_the_names_of_the_bare_model() -> None:
    names = {name for name, module in build_model("llama").named_modules() if name.endswith("_proj")}
    assert set(lora_layers(lora())) == names


def test_reading_gradients_before_a_backward_pass_is_an_error() -> None:
    program = adapted(build_model("llama"))
    with pytest.raises(RuntimeError, match=r"q_proj\.weight has no gradient.*after the backward pass"):
        dict(projections(program.model, program.traced))


@torch.no_grad()
def test_a_saved_adapter_is_loaded_by_peft_bit_for_bit(tmp_path: Path) -> None:
    model, ids = lora(), Blocks(2).ids
    randomise_adapter(model)
    expected = model.eval()(ids).logits
    adapter = Adapter.of(model)
    adapter.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    loaded = PeftModel.from_pretrained(build_model("llama"), check_adapter_folder(tmp_path)).eval()
    assert torch.equal(loaded(ids).logits, expected)


def test_an_adapter_is_a_copy() -> None:
    model = lora()
    adapter = Adapter.of(model)
    before = {name: value.clone() for name, value in adapter.state.items()}
    randomise_adapter(model)
    assert all(torch.equal(value, before[name]) for name, value in adapter.state.items())


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused_with_its_name(tmp_path: Path, missing: str) -> None:
    Adapter.of(lora()).write(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(MissingFileError, match=missing):
        check_adapter_folder(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"alpha": 0}, {"alpha": float("nan")}, {"dropout": 1.0}, {"dropout": -1}]
)
def test_impossible_lora_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        LoraOptions(**wrong)


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_exactly_the_weights_of_the_graph_wear_lora(name: str) -> None:
    model, graph = worn(name)
    check_adapter(model)
    assert set(lora_weights(model)) == weights_of(graph)
    wrapped = {plain_name(key).rpartition(".lora_A")[0] for key, _ in model.named_parameters() if ".lora_A" in key}
    modules = {parameter.rpartition(".")[0] for parameter in weights_of(graph)}
    assert {key.removeprefix("base_model.model.") for key in wrapped} == modules


@pytest.mark.parametrize(
    ("name", "kind", "task"),
    [
        ("llama", PeftModelForCausalLM, "CAUSAL_LM"),
        ("mixtral", PeftModelForCausalLM, "CAUSAL_LM"),
        ("t5", PeftModelForSeq2SeqLM, "SEQ_2_SEQ_LM"),
        ("bert", PeftModel, None),
        ("bert-sequence-classification", PeftModel, None),
        ("llama-sequence-classification", PeftModel, None),
    ],
)
def test_the_task_is_peft_s_only_where_that_trains_no_head(name: str, kind: type, task: str | None) -> None:
    model, _ = worn(name)
    config = model.peft_config["default"]
    assert type(model) is kind
    assert (config.task_type, config.modules_to_save) == (task, None)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(LAYERS))
def test_the_adapter_of_any_family_is_loaded_by_peft_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, graph = worn(name)
    adapter = Adapter.of(model)
    adapter.write(tmp_path)
    loaded = PeftModel.from_pretrained(zoo.build(name), tmp_path).eval()
    assert set(lora_weights(loaded)) == weights_of(graph)
    again = Adapter.of(loaded).state
    assert again.keys() == adapter.state.keys()
    assert all(torch.equal(value, again[key]) for key, value in adapter.state.items())
    assert torch.equal(logits(loaded, name), logits(model, name))
    assert not torch.equal(logits(loaded, name), logits(zoo.build(name), name))


def test_the_configuration_is_written_in_one_order(tmp_path: Path) -> None:
    assert Adapter.of(worn("mixtral")[0]).save(tmp_path) == (
        Path("adapter/adapter_config.json"),
        Path("adapter/adapter_model.safetensors"),
    )
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["target_parameters"] == sorted(
        f"model.layers.{layer}.mlp.experts.{leaf}_proj" for layer in range(2) for leaf in ("down", "gate_up")
    )
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["fan_in_fan_out"] is False


def test_conv1d_is_said_to_be_transposed() -> None:
    assert worn("gpt2")[0].peft_config["default"].fan_in_fan_out is True


def test_dropout_on_stacked_experts_is_refused() -> None:
    with pytest.raises(OptionError, match=r"dropout is 0\.1.*experts.*peft has no dropout: set it to 0"):
        worn("mixtral", dropout=0.1)
    assert worn("gpt2", dropout=0.1)[0].peft_config["default"].lora_dropout == 0.1


def test_a_model_with_both_orientations_is_refused() -> None:
    model = zoo.build("gpt2")
    graph = graph_of("gpt2", model)
    model.transformer.h[1].mlp.c_fc = nn.Linear(32, 64)
    with pytest.raises(UnsupportedModelError, match="both Conv1D layers and other weights"):
        lora_config(LoraOptions(), graph, model)


def test_layers_are_named_as_in_the_bare_model() -> None:
    model, _ = worn("qwen3_moe-mixed")
    modules = dict(zoo.build("qwen3_moe-mixed").named_modules())
    parameters = dict(zoo.build("qwen3_moe-mixed").named_parameters())
    for name, layer in lora_layers(model).items():
        assert name in (parameters if isinstance(layer, ParamWrapper) else modules)
    assert isinstance(lora_layers(model)["model.layers.1.mlp.experts.gate_up_proj"], ParamWrapper)


def test_layers_of_an_inactive_adapter_are_left_out() -> None:
    model = lora(target_modules=["q_proj"])
    model.add_adapter("second", LoraConfig(task_type="CAUSAL_LM", target_modules=["up_proj"]))
    assert {name.rpartition(".")[2] for name in lora_layers(model)} == {"q_proj"}


def test_a_dimension_is_scored_by_the_adapter_that_covers_any_of_its_weights() -> None:
    base = zoo.build("mixtral")
    graph = graph_of("mixtral", base)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=[], target_parameters=["layers.1.mlp.experts.down_proj"])
    ways = scored_by(get_peft_model(base, config), graph)
    assert ways.keys() == graph.by_name.keys()
    expected = {name for name in ways if name.startswith("layers.1.experts")}
    assert len(expected) == 5
    assert {name for name, way in ways.items() if way == ADAPTER} == expected
    assert {way for name, way in ways.items() if name not in expected} == {GRADIENT}


def test_a_dimension_without_weights_is_refused() -> None:
    model, graph = worn("llama")
    bare = replace(graph.dimensions[0], slices=(Slice("model.norm.weight", 0),))
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.kv_groups has no weights"):
        scored_by(model, replace(graph, dimensions=(bare,)))


@torch.no_grad()
def test_a_module_is_found_by_its_plain_name_in_or_out_of_its_wrappers() -> None:
    model, bare = worn("mixtral")[0], zoo.build("mixtral")
    name = "model.layers.0.mlp.experts"
    outer, inner = module_at(model, name), module_at(model, name, unwrapped=True)
    assert (outer.parameter_name, outer.base_layer.parameter_name) == ("down_proj", "gate_up_proj")
    assert outer.base_layer.base_layer is inner
    assert type(inner) is type(bare.get_submodule(name))
    assert module_at(model, f"{name}.act_fn") is inner.act_fn
    assert module_at(model, "") is model.get_base_model()
    assert module_at(bare, name) is module_at(bare, name, unwrapped=True) is bare.get_submodule(name)
    for key, parameter in bare.named_parameters():
        assert torch.equal(parameter_at(model, key), parameter)
    with pytest.raises(AttributeError, match="nothing"):
        module_at(model, f"{name}.nothing")


@torch.no_grad()
def test_a_hook_on_the_outermost_wrapper_sees_what_the_model_computes_with() -> None:
    model, seen = worn("mixtral")[0], []
    handle = module_at(model, "model.layers.1.mlp.experts").register_forward_hook(lambda m, i, out: seen.append(out))
    logits(model, "mixtral")
    handle.remove()
    merged = model.merge_and_unload()
    merged.get_submodule("model.layers.1.mlp.experts").register_forward_hook(lambda m, i, out: seen.append(out))
    logits(merged, "mixtral")
    assert relative(seen[0], seen[1]) < 1e-5
