from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import zoo
from handmade import LAYERS, logits, materialised, weights_of, worn
from peft import LoraConfig, get_peft_model
from workbench import (
    adapted,
    build_model,
    dense_twin,
    planned,
    random_kept,
    randomise_adapter,
    relative,
    silence_by_hand,
    traced,
)

from passes.errors import ModelError, UnsupportedModelError
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rank", "rooted", "size"), [(4, False, 0.1), (256, True, 0.1), (256, False, 2.0)])
def test_sums_are_rounded_once_whatever_the_adapter(dtype: torch.dtype, rank: int, rooted: bool, size: float) -> None:
    program = traced(build_model("qwen2").to(dtype))
    config = LoraConfig(target_modules=["q_proj", "down_proj"], r=rank, lora_alpha=64, use_rslora=rooted)
    model = get_peft_model(program.model, config).eval()
    generator = torch.Generator().manual_seed(3)
    expected = {}
    for name, layer in lora_layers(model).items():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        for factor in (a, b):
            factor.data = size * torch.randn(factor.shape, generator=generator).to(factor.dtype)
        scaling = 64 / (rank**0.5 if rooted else rank)
        exact = layer.base_layer.weight.double() + scaling * (b.double() @ a.double())
        expected[f"{name}.weight"] = exact.to(dtype)
    result = MergePass()(replace(program, model=model))
    state = result.program.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    (parity,) = result.program.history[-1].parity
    assert parity.value <= parity.tolerance == torch.finfo(dtype).eps / 2


def test_a_scaling_that_cannot_be_saved_is_refused_at_the_start() -> None:
    model = adapted(build_model("llama")).model
    lora_layers(model)["model.layers.1.mlp.up_proj"].set_scale("default", 0.5)
    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.mlp\.up_proj is scaled by 1\.5, and .* say 3"):
        Program.start(model)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning:peft")
def test_an_adapter_on_an_embedding_is_merged_and_checked_too() -> None:
    model = build_model("llama", tie_word_embeddings=False)
    dense = model.model.embed_tokens.weight.detach().clone()
    worn = get_peft_model(model, LoraConfig(target_modules=["embed_tokens", "q_proj"], r=3, lora_alpha=6))
    randomise_adapter(worn)
    layer = worn.get_base_model().model.embed_tokens
    factors = layer.lora_embedding_B["default"].double() @ layer.lora_embedding_A["default"].double()
    merged = MergePass()(traced(worn.eval())).program.model
    assert torch.equal(merged.model.embed_tokens.weight, (dense.double() + 2 * factors.T).float())


def test_user_precision_is_left_as_it_was() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        MergePass()(adapted(build_model("llama")))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_without_an_adapter_there_is_nothing_to_do() -> None:
    program = traced(build_model("llama"))
    result = MergePass()(program)
    assert not result.modified
    assert result.program.model is program.model


def test_half_precision_merges_within_its_rounding() -> None:
    record = MergePass()(adapted(build_model("llama").bfloat16())).program.history[-1]
    assert 0 < record.parity[0].value <= record.parity[0].tolerance == 2**-8
