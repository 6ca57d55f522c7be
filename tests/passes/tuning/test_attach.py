from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import zoo
from handmade import LAYERS, graph_of, logits
from peft import LoraConfig, PeftModel, get_peft_model
from workbench import PROJECTIONS, Blocks, build_model, randomise_adapter, traced

from passes.errors import PreconditionError
from passes.models.adapter import lora_layers
from passes.options import LoraOptions
from passes.pipeline import Program
from passes.tuning import AttachPass

IDS = Blocks(2).ids
WAYS = (("kv_groups", "adapter"), ("mlp_channels", "gradient"))


def brought(**changes: object) -> PeftModel:
    """A user's trained adapter, loaded for inference."""
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=list(PROJECTIONS), r=3, lora_alpha=5, **changes)
    model = get_peft_model(build_model("llama"), config)
    randomise_adapter(model)
    return model.requires_grad_(False).eval()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@torch.no_grad()
def test_attaching_leaves_the_logits_bit_equal(family: str) -> None:
    program = traced(build_model(family))
    before = program.model(IDS).logits
    result = AttachPass(LoraOptions(dropout=0.5))(program)
    assert torch.equal(result.program.model(IDS).logits, before)
    assert result.modified
    record = result.program.history[-1]
    assert (record.parity[0].value, record.parity[0].tolerance) == (0.0, 0.0)


def test_only_a_and_b_are_trained() -> None:
    model = AttachPass()(traced(build_model("qwen2"))).program.model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(trained) == 2 * 2 * 7


def test_the_options_reach_the_adapter() -> None:
    layers = lora_layers(
        AttachPass(LoraOptions(rank=3, alpha=6, dropout=0.25))(traced(build_model("llama"))).program.model
    )
    for layer in layers.values():
        assert layer.lora_A["default"].weight.shape[0] == 3
        assert layer.scaling["default"] == 2
        assert layer.lora_dropout["default"].p == 0.25


def test_the_initial_a_depends_on_the_seed_alone_and_global_randomness_is_left_alone() -> None:
    programs = [traced(build_model("llama")) for _ in range(3)]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    models = [AttachPass(seed=seed)(program).program.model for seed, program in zip((1, 1, 2), programs, strict=True)]
    assert torch.equal(torch.rand(3), expected)
    first, same, other = (lora_layers(m)["model.layers.0.mlp.up_proj"].lora_A["default"].weight for m in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@torch.no_grad()
def test_a_brought_adapter_is_kept_and_trained_on() -> None:
    model = brought()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = model(IDS).logits
    result = AttachPass(LoraOptions(rank=8))(traced(model))
    assert result.program.model is model
    assert not result.modified
    assert torch.equal(model(IDS).logits, logits)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad == (".lora_" in name) for name, parameter in model.named_parameters())


def test_an_inactive_second_adapter_is_not_trained() -> None:
    model = brought()
    model.add_adapter("second", LoraConfig(task_type="CAUSAL_LM", target_modules=list(PROJECTIONS)))
    AttachPass()(traced(model))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".default." in name}


def test_what_a_brought_adapter_leaves_out_is_reported_to_be_scored_by_its_gradient() -> None:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "k_proj"])
    result = AttachPass()(traced(get_peft_model(build_model("llama"), config)))
    expected = {f"layers.{i}.{kind}": way for i in range(2) for kind, way in WAYS}
    assert result.program.history[-1].report.scored_by == expected
    assert not any(p.requires_grad for name, p in result.program.model.named_parameters() if ".lora_" not in name)


def test_an_adapter_of_lpc_s_own_scores_everything() -> None:
    report = AttachPass()(traced(build_model("llama"))).program.history[-1].report
    assert set(report.scored_by.values()) == {"adapter"}


def handwritten(name: str) -> Program:
    model = zoo.build(name)
    return replace(Program.start(model), graph=graph_of(name, model))


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_attaching_to_any_family_leaves_its_outputs_bit_equal(name: str) -> None:
    program = handwritten(name)
    before = logits(program.model, name)
    result = AttachPass(LoraOptions(rank=4))(program)
    model = result.program.model
    assert torch.equal(logits(model, name), before)
    assert result.program.history[-1].parity[0].value == 0.0
    assert all(parameter.requires_grad == (".lora_" in key) for key, parameter in model.named_parameters())
    assert not any(module.training for module in model.modules())


def test_an_untraced_program_is_refused() -> None:
    with pytest.raises(PreconditionError, match="'attach' needs a traced program"):
        AttachPass()(Program.start(build_model("llama")))
