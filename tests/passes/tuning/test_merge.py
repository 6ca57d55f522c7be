from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import zoo
from handmade import LAYERS, logits, materialised, weights_of, worn
from peft import LoraModel
from workbench import adapted, build_model, dense_twin, planned, random_kept, relative, silence_by_hand, traced

from passes.errors import ModelError, PostconditionError
from passes.models import respond
from passes.models.adapter import lora_layers
from passes.pipeline import Program
from passes.tuning import MergePass


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@torch.no_grad()
def test_merged_weights_are_w_plus_scaled_ba(family: str) -> None:
    program = adapted(build_model(family))
    expected = dense_twin(program.model, build_model(family)).state_dict()
    result = MergePass()(program)
    merged = result.program.model.state_dict()
    assert result.modified
    assert set(merged) == set(expected)
    assert all(relative(value, expected[name]) < 1e-6 for name, value in merged.items())
    assert not any(parameter.requires_grad for parameter in result.program.model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(LAYERS))
def test_merged_weights_of_any_family_are_w_plus_scaled_ba(name: str) -> None:
    model, graph = worn(name)
    before = logits(model, name)
    program = replace(Program.start(model), graph=graph)
    expected = materialised(model, zoo.build(name), weights_of(graph)).state_dict()
    merged = MergePass()(program).program.model
    assert type(merged) is type(zoo.build(name))
    state = merged.state_dict()
    assert set(state) == set(expected)
    assert all(relative(value, expected[key]) < 1e-6 for key, value in state.items())
    untouched = set(expected) - weights_of(graph)
    assert all(torch.equal(state[key], expected[key]) for key in untouched)
    assert relative(logits(merged, name), before) < 1e-5


@torch.no_grad()
def test_merging_keeps_the_response_under_masks() -> None:
    program = adapted(build_model("llama"))
    kept = random_kept(program.traced, 2, 24, seed=8)
    reference = silence_by_hand(dense_twin(program.model, build_model("llama")), kept)
    merged = MergePass()(planned(program, kept)).program
    assert merged.history[-1].parity[0].value <= 1e-5
    assert relative(merged.expected.outputs["logits"], respond(reference, merged.probe).outputs["logits"]) < 1e-5


def test_the_adapter_is_kept_as_it_was_before_the_merge() -> None:
    program = adapted(build_model("llama"))
    layer = lora_layers(program.model)["model.layers.0.mlp.up_proj"]
    expected = layer.lora_A["default"].weight.detach().clone()
    adapter = MergePass()(program).program.adapter
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    assert torch.equal(adapter.state[key], expected)


def test_a_sum_that_is_not_finite_is_refused() -> None:
    program = adapted(build_model("llama"))
    with torch.no_grad():
        lora_layers(program.model)["model.layers.1.mlp.up_proj"].lora_B["default"].weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match="not finite"):
        MergePass()(program)


def test_a_merge_that_forgets_the_scaling_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    program = adapted(build_model("llama"))
    model = program.model
    original = LoraModel.merge_and_unload

    def wrong(self, **options):
        lora_layers(model)["model.layers.1.self_attn.o_proj"].scaling["default"] = 1.0
        return original(self, **options)

    monkeypatch.setattr(LoraModel, "merge_and_unload", wrong)
    with pytest.raises(PostconditionError, match=r"'merge' changed.*layer 1 is the first"):
        MergePass()(program)


def test_without_an_adapter_there_is_nothing_to_do() -> None:
    program = traced(build_model("llama"))
    result = MergePass()(program)
    assert not result.modified
    assert result.program.model is program.model


def test_half_precision_merges_within_its_rounding() -> None:
    record = MergePass()(adapted(build_model("llama").bfloat16())).program.history[-1]
    assert 0 < record.parity[0].value <= record.parity[0].tolerance < 0.11
