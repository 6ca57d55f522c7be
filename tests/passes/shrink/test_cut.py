from __future__ import annotations

import pytest
import torch
import zoo
from shrinking import counted, decoded, dense, graph_of, outputs, some_units
from silenced import BY_HAND, silenced
from transformers import PreTrainedModel
from workbench import random_units, relative

from passes.families import FAMILIES, attention_blocks
from passes.graph import Dimension, Kind, Role, Slice
from passes.models import count_parameters
from passes.shrink import build_compact
from passes.shrink.cut import cut_state, cut_tensor, kept_heads, resized_config


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_compact_model_is_the_dense_one_with_the_units_silenced_by_hand(name: str, share: float) -> None:
    """From as few units as may be to all but one."""
    graph = graph_of(name, custom_code=True)
    counts = {width.name: width.counts[int(share * (len(width.counts) - 1))] for width in graph.widths}
    kept = random_units(graph, counts, seed=int(share * 10))
    compact = build_compact(dense(name), graph, kept)
    expected = outputs(silenced(name, dense(name), kept), name)
    assert relative(outputs(compact, name), expected) < 1e-5
    stepwise = decoded(compact, name)
    assert stepwise is None or relative(stepwise, expected) < 1e-5
    assert relative(outputs(dense(name), name), expected) > 1e-2


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "bart"])
def test_the_source_and_its_configuration_stay_as_they_were(name: str) -> None:
    model = zoo.build(name)
    before, config = {key: value.clone() for key, value in model.state_dict().items()}, model.config.to_dict()
    graph = graph_of(name, custom_code=True)
    compact = build_compact(model, graph, some_units(graph))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.config.to_dict() == config
    assert compact.config is not model.config


def test_what_is_no_tensor_is_as_in_the_source() -> None:
    for training in (False, True):
        model = zoo.build("gpt2").train(training)
        model.generation_config.top_k = 7
        model.set_attn_implementation("eager")
        graph = graph_of("gpt2", custom_code=True)
        compact = build_compact(model, graph, some_units(graph))
        assert compact.generation_config.top_k == 7
        assert compact.config._attn_implementation == "eager"
        assert compact.training is training
        assert all(parameter.requires_grad for parameter in compact.parameters())


def test_tied_weights_are_one_parameter_again() -> None:
    for custom_code in (False, True):
        graph = graph_of("gpt2", custom_code=custom_code)
        compact = build_compact(dense("gpt2"), graph, some_units(graph))
        assert compact.lm_head.weight is compact.transformer.wte.weight
        assert count_parameters(compact) == graph.parameters(counted(some_units(graph)))


@pytest.mark.parametrize(
    ("name", "stock", "resized"),
    [
        ("llama", "LlamaForCausalLM", "LlamaForCausalLM"),
        ("gpt2", "GPT2LMHeadModel", "CompactGPT2LMHeadModel"),
        ("bert", "BertForMaskedLM", "CompactBertForMaskedLM"),
        ("vit", "ViTForImageClassification", "ViTForImageClassification"),
    ],
)
def test_a_class_of_its_own_is_used_only_where_the_stock_class_does_not_hold_the_sizes(
    name: str, stock: str, resized: str
) -> None:
    for custom_code, expected in ((False, stock), (True, resized)):
        graph = graph_of(name, custom_code=custom_code)
        kept = random_units(graph, {width.name: width.counts[0] for width in graph.widths}, 0)
        compact = build_compact(dense(name), graph, kept)
        assert type(compact).__name__ == expected
        assert isinstance(compact, type(dense(name)))


def test_the_configuration_lists_what_is_not_as_in_the_dense_model() -> None:
    graph = graph_of("gpt2", custom_code=True)
    kept = {
        "layers.0.kv_groups": (1, 4, 6),
        "layers.0.mlp_channels": (5, 9),
        "layers.1.kv_groups": (0, 1, 2),
        "layers.1.mlp_channels": (0, 63),
    }
    config = resized_config(dense("gpt2"), graph, kept)
    assert config.architectures == ["CompactGPT2LMHeadModel"]
    layer = {
        "attn.c_attn.weight": [32, 36],
        "attn.c_attn.bias": [36],
        "attn.c_proj.weight": [12, 32],
        "mlp.c_fc.weight": [32, 2],
        "mlp.c_fc.bias": [2],
        "mlp.c_proj.weight": [2, 32],
    }
    shapes = {f"transformer.h.{i}.{parameter}": shape for i in (0, 1) for parameter, shape in layer.items()}
    assert config.compact["shapes"] == shapes
    attributes = {"num_heads": 3, "split_size": 12}
    assert config.compact["attributes"] == {f"transformer.h.{i}.attn": attributes for i in (0, 1)}
    assert config.compact["heads"] == {}
    assert (config.n_head, config.n_inner) == (8, 64)
    assert not hasattr(dense("gpt2").config, "compact")


def test_heads_are_numbered_as_in_the_dense_model() -> None:
    graph = graph_of("falcon-grouped", custom_code=True)
    kept = random_units(graph, {"kv_groups": 2}, 0) | {"layers.0.kv_groups": (1, 3)}
    block = next(attention_blocks(dense("falcon-grouped"), FAMILIES["falcon"]))
    assert kept_heads(block, graph, kept) == [2, 3, 6, 7]
    inside = graph_of("falcon-grouped", custom_code=True, query_heads=True)
    lanes = {f"layers.0.query_heads.{group}": (group % 2,) for group in range(4)}
    assert kept_heads(block, inside, random_units(inside, {"query_heads": 1}, 0) | lanes) == [0, 3, 4, 7]


def slopes(heads: int) -> list[float]:
    """ALiBi's slopes for a power of two of heads: 2^(-8/n), 2^(-16/n), ... (Press et al., arXiv 2108.12409)."""
    return [2 ** (-8 * (head + 1) / heads) for head in range(heads)]


@pytest.mark.parametrize("name", ["bloom", "falcon-mha-alibi"])
@torch.no_grad()
def test_heads_keep_their_own_alibi_slopes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(name, custom_code=True)
    chosen = (2, 3, 7)
    kept = random_units(graph, {"kv_groups": 3}, 0) | {f"layers.{i}.kv_groups": chosen for i in (0, 1)}
    compact = build_compact(dense(name), graph, kept)
    block = compact.transformer.h[0].self_attention
    seen: list[torch.Tensor] = []
    original = block.forward

    def spy(*args, **kwargs):
        seen.append(kwargs["alibi"])
        return original(*args, **kwargs)

    monkeypatch.setattr(block, "forward", spy)
    compact(torch.arange(5)[None])
    alibi = seen[0].reshape(3, -1, 5)[:, -1]
    expected = torch.tensor([[slopes(8)[head] * position for position in range(5)] for head in chosen])
    assert relative(alibi, expected) < 1e-2  # Falcon makes them in bfloat16


def test_without_the_slopes_of_their_heads_the_model_is_another() -> None:
    """The check above can fail: with the first slopes in place of the heads' own, outputs differ."""
    graph = graph_of("bloom", custom_code=True)
    kept = random_units(graph, {"kv_groups": 3}, 0) | {f"layers.{i}.kv_groups": (5, 6, 7) for i in (0, 1)}
    expected = outputs(silenced("bloom", dense("bloom"), kept), "bloom")
    compact = build_compact(dense("bloom"), graph, kept)
    for layer in compact.transformer.h:
        for hook in layer.self_attention._forward_pre_hooks.values():
            hook.kept = [0, 1, 2]
    assert relative(outputs(compact, "bloom"), expected) > 1e-3


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


@torch.no_grad()
def test_a_norm_over_all_heads_is_the_same_function_of_those_that_are_left() -> None:
    """To double precision, eps included, which the model itself cannot tell: it norms in single precision."""
    model = zoo.build("olmo2", rms_norm_eps=0.5).double()
    graph = graph_of("olmo2")
    kept = random_units(graph, {"kv_groups": 1}, 3) | {"layers.0.kv_groups": (2,)}
    small = cut_state(model.state_dict(), graph, kept)
    x = torch.randn(7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    block, path = model.model.layers[0].self_attn, "model.layers.0.self_attn"
    for side, units, size in (("q", [4, 5], 8), ("k", [2], 4)):
        values = x @ block.get_submodule(f"{side}_proj").weight.T
        columns = [head * 4 + i for head in units for i in range(4)]
        masked = torch.zeros_like(values)
        masked[:, columns] = values[:, columns]
        expected = rms_norm(masked, block.get_submodule(f"{side}_norm").weight, 0.5)[:, columns]
        actual = rms_norm(x @ small[f"{path}.{side}_proj.weight"].T, small[f"{path}.{side}_norm.weight"], 0.5)
        assert actual.shape == (7, size)
        assert relative(actual, expected) < 1e-14


def test_a_norm_over_all_heads_stays_as_it_is_when_all_heads_stay() -> None:
    graph = graph_of("olmo2")
    state = dense("olmo2").state_dict()
    small = cut_state(state, graph, random_units(graph, {"mlp_channels": 5}, 0))
    for side in ("q_proj", "k_proj", "q_norm", "k_norm"):
        name = f"model.layers.1.self_attn.{side}.weight"
        assert torch.equal(small[name], state[name])


def stack_of(experts: int) -> tuple[list[tuple[Dimension, Slice]], dict[str, tuple[int, ...]]]:
    """A stack [experts, 3, 4] whose experts and whose channels (the last axis) are dimensions."""
    whole = Slice("stack", 0, role=Role.OWN)
    owners = [(Dimension("experts", Kind.EXPERTS, 0, experts, (whole,), "experts"), whole)]
    for expert in range(experts):
        part = Slice("stack", 2, role=Role.CONSUME, at=expert)
        dimension = Dimension(f"channels.{expert}", Kind.EXPERT_CHANNELS, 0, 4, (part,), "expert_channels")
        owners.append((dimension, part))
    return owners, {"experts": tuple(range(experts)), **{f"channels.{e}": (0, 1, 2, 3) for e in range(experts)}}


def test_each_expert_of_a_stack_loses_its_own_channels() -> None:
    owners, everything = stack_of(3)
    stack = torch.arange(36.0).reshape(3, 3, 4)
    kept = everything | {"experts": (0, 2), "channels.0": (1, 3), "channels.1": (0, 1), "channels.2": (0, 2)}
    expected = torch.stack([stack[0][:, [1, 3]], stack[2][:, [0, 2]]])
    assert torch.equal(cut_tensor(stack, owners, kept), expected)
    assert torch.equal(cut_tensor(stack, owners, everything), stack)


def test_two_dimensions_along_one_axis_are_cut_together() -> None:
    model: PreTrainedModel = dense("llama")
    graph = graph_of("llama", query_heads=True, custom_code=True)
    lanes = {f"layers.0.query_heads.{group}": (unit,) for group, unit in enumerate((0, 1, 1, 0))}
    kept = random_units(graph, {"query_heads": 1}, 0) | lanes
    small = cut_state(model.state_dict(), graph, kept)
    rows = [head * 8 + i for head in (0, 3, 5, 6) for i in range(8)]
    path = "model.layers.0.self_attn"
    query, key = (model.get_parameter(f"{path}.{side}_proj.weight") for side in "qk")
    assert torch.equal(small[f"{path}.q_proj.weight"], query[rows])
    assert torch.equal(small[f"{path}.k_proj.weight"], key)
    assert torch.equal(small[f"{path}.o_proj.weight"], model.get_parameter(f"{path}.o_proj.weight")[:, rows])
