from __future__ import annotations

import copy

import pytest
import torch
import zoo
from shrinking import dense, graph_of, masked_outputs, outputs, some_units
from shrinking import masks_of as masks_of_units
from silenced import BY_HAND, silenced
from workbench import Blocks, adapted, backward, build_model, random_kept, relative, silence_by_hand, traced

from passes.graph import Plan, full_masks
from passes.models import MaskedModel, masked
from passes.models.adapter import lora_layers

IDS = Blocks(3).ids


def masks_of(program, kept: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    plan = Plan(source="", family="", budget={"parameters": 0.5}, source_parameters=2, target_parameters=1, kept=kept)
    return plan.masks(program.traced)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@torch.no_grad()
def test_masked_units_are_not_heard(family: str) -> None:
    biases = {"attention_bias": True, "mlp_bias": True} if family == "llama" else {}
    program = traced(build_model(family, **biases))
    kept = random_kept(program.traced, 2, 24, seed=0)
    with masked(program.model, program.traced, masks_of(program, kept)):
        actual = program.model(IDS).logits
    assert relative(actual, silence_by_hand(program.model, kept)(IDS).logits) < 1e-5
    assert relative(actual, program.model(IDS).logits) > 1e-2


@pytest.mark.parametrize("name", BY_HAND)
def test_masked_units_of_any_family_are_not_heard(name: str) -> None:
    graph = graph_of(name, custom_code=True)
    kept = some_units(graph, seed=6)
    expected = outputs(silenced(name, dense(name), kept), name)
    assert relative(masked_outputs(dense(name), graph, kept, name), expected) < 1e-5
    assert relative(outputs(dense(name), name), expected) > 1e-2


@pytest.mark.parametrize("name", ["llama", "olmo2", "mixtral", "t5"])
def test_masks_come_off_whatever_happens_inside(name: str) -> None:
    """Also those that replace a weight while a module runs, when that module fails."""
    model, graph = zoo.build(name), graph_of(name)
    before = outputs(model, name)
    parameters, states = dict(model.named_parameters()), set(model.state_dict())
    batch = {
        key: value.float() if key == "input_ids" else value for key, value in zoo.inputs(name, zoo.ZOO[name]).items()
    }
    with masked(model, graph, masks_of_units(graph, some_units(graph))):
        with pytest.raises(RuntimeError):
            model(**batch)
        if name == "mixtral":
            mixture = model.model.layers[0].mlp
            with pytest.raises(RuntimeError):
                mixture.experts(torch.ones(2, 3), torch.zeros(2, 1).long(), torch.ones(2, 1))
            with pytest.raises(RuntimeError):
                mixture.gate(torch.ones(2, 3).long())
            assert "weight" not in vars(mixture.gate)
    assert torch.equal(outputs(model, name), before)
    assert set(model.state_dict()) == states
    assert all(parameter is parameters[key] for key, parameter in model.named_parameters())


@torch.no_grad()
def test_full_masks_change_nothing_and_hooks_come_off() -> None:
    program = traced(build_model("qwen2"))
    before, hooks_before = program.model(IDS).logits, hooks(program)
    with masked(program.model, program.traced, full_masks(program.traced)):
        assert torch.equal(program.model(IDS).logits, before)
    with pytest.raises(KeyError), masked(program.model, program.traced, masks_of(program, everything_but_one(program))):
        raise KeyError("inside")
    assert torch.equal(program.model(IDS).logits, before)
    assert hooks(program) == hooks_before


def hooks(program) -> int:
    return sum(len(module._forward_hooks) for module in program.model.modules())


def everything_but_one(program) -> dict[str, tuple[int, ...]]:
    return random_kept(program.traced, 3, 63, seed=0)


def test_the_mask_covers_base_and_adapter_together() -> None:
    """z = (xW0 + s·xBA) ⊙ M: hence the rows of a masked unit get no gradient in B, all others do."""
    program = adapted(build_model("llama"))
    kept = random_kept(program.traced, 2, 24, seed=1)
    hooks = MaskedModel(program.model, program.traced)
    hooks.set(masks_of(program, kept))
    backward(program.model, IDS)
    layer = lora_layers(program.model)["model.layers.1.mlp.up_proj"]
    alive = layer.lora_B["default"].weight.grad.abs().sum(1) > 0
    assert tuple(alive.nonzero().flatten().tolist()) == kept["layers.1.mlp_channels"]
    hooks.remove()
    backward(program.model, IDS)
    assert (layer.lora_B["default"].weight.grad.abs().sum(1) > 0).all()


@torch.no_grad()
def test_new_masks_replace_the_old_ones() -> None:
    program = traced(build_model("llama"))
    first, second = (masks_of(program, random_kept(program.traced, 2, 24, seed=seed)) for seed in (1, 2))
    hooks = MaskedModel(program.model, program.traced)
    hooks.set(first)
    hooks.set(second)
    actual = program.model(IDS).logits
    hooks.remove()
    with masked(program.model, program.traced, second):
        assert torch.equal(program.model(IDS).logits, actual)


@torch.no_grad()
def test_masks_keep_the_dtype_of_half_precision() -> None:
    program = traced(copy.deepcopy(build_model("llama")).bfloat16())
    with masked(program.model, program.traced, masks_of(program, everything_but_one(program))):
        assert program.model(IDS).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["llama", "olmo2", "mixtral", "qwen3_moe-mixed"])
def test_masks_switched_off_let_everything_through_bit_for_bit_and_come_back(name: str) -> None:
    model = zoo.build(name)
    program = traced(copy.deepcopy(model))
    masks = {d.name: torch.arange(d.size) < max(2, d.size // 2) for d in program.traced.dimensions}
    batch = zoo.inputs(model, zoo.ZOO[name])
    with torch.no_grad(), masked(program.model, program.traced, masks) as hooks:
        under, whole = program.model(**batch).logits, model(**batch).logits
        with hooks.off():
            assert torch.equal(program.model(**batch).logits, whole)
            with hooks.off():
                pass
            assert torch.equal(program.model(**batch).logits, whole)
        assert torch.equal(program.model(**batch).logits, under)
    assert not torch.allclose(under, whole, atol=0.1)
