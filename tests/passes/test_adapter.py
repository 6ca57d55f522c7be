from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import PreTrainedModel
from workbench import PROJECTIONS, Blocks, adapted, build_model, randomise_adapter

from passes.adapter import (
    Adapter,
    LoraOptions,
    active_adapter,
    check_adapter,
    check_adapter_folder,
    lora_layers,
    projections,
)
from passes.errors import MissingFileError, OptionError, UnsupportedModelError
from passes.program import Program

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
    "parameters": (
        lambda: lora(target_modules=["q_proj"], target_parameters=["mlp.up_proj.weight"]),
        "target_parameters",
    ),
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


@pytest.mark.parametrize("changes", [{"use_rslora": True}, {"lora_dropout": 0.1}, {"rank_pattern": {"q_proj": 2}}])
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
    with pytest.raises(RuntimeError, match="after the backward pass"):
        dict(projections(program.model, program.traced))


@torch.no_grad()
def test_a_saved_adapter_is_loaded_by_peft_bit_for_bit(tmp_path: Path) -> None:
    model, ids = lora(), Blocks(2).ids
    randomise_adapter(model)
    expected = model.eval()(ids).logits
    adapter = Adapter.of(model)
    adapter.save(tmp_path)
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
    Adapter.of(lora()).save(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(MissingFileError, match=missing):
        check_adapter_folder(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"alpha": 0}, {"alpha": float("nan")}, {"dropout": 1.0}, {"dropout": -1}]
)
def test_impossible_lora_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        LoraOptions(**wrong)


def test_by_default_all_seven_projections_wear_lora_and_nothing_else() -> None:
    def targets(model: PreTrainedModel) -> set[str]:
        return set(LoraOptions().config(adapted(model).traced).target_modules)

    assert targets(build_model("llama")) == targets(build_model("qwen3")) == set(PROJECTIONS)
