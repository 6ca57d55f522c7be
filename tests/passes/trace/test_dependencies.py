from __future__ import annotations

import copy
import sys

import pytest
import torch
import zoo
from torch import nn
from transformers.pytorch_utils import Conv1D

from passes.families import FAMILIES
from passes.models import Probe, twin_of, vendor
from passes.trace.dependencies import CoupledModule, Dependencies, Opaque, outputs_of

UNTRACEABLE = ("attention_mask", "decoder_attention_mask", "position_ids")


@torch.enable_grad()
def dependencies_of(name: str) -> Dependencies:
    """Those of a model of the zoo whose attention blocks and mixtures of experts are opaque."""
    case = zoo.ZOO[name]
    config = case.config()
    twin = twin_of(case.model_class, config)
    paths = [path for path, _ in twin.named_modules()]
    for path in paths:
        if any(layout.matches(path) for layout in FAMILIES[case.family].attentions):
            twin.set_submodule(path, Opaque(twin.get_submodule(path), config.hidden_size))
        elif path.endswith(".mlp") and hasattr(twin.get_submodule(path), "experts"):
            twin.set_submodule(path, Opaque(twin.get_submodule(path), config.hidden_size, run=False))
    inputs = {k: v[:1].to("meta") for k, v in Probe.of(twin).inputs.items() if k not in UNTRACEABLE}
    with vendor.Unvalued():
        return Dependencies(twin, inputs)


def members(name: str, module: str, units: tuple[int, ...] = (3,)) -> dict[tuple[str, bool], tuple[int, ...]]:
    """The indices of each coupled linear layer, by its name and whether it produces the units."""
    found = dependencies_of(name)
    coupled = found.members(found.twin.get_submodule(module), units)
    linear = [member for member in coupled if isinstance(member.module, nn.Linear | Conv1D)]
    return {(member.name, member.produces): member.indices for member in linear}


@pytest.mark.parametrize(
    ("name", "module", "expected"),
    [
        (
            "llama",
            "model.layers.1.mlp.up_proj",
            {("gate_proj", True): (3,), ("up_proj", True): (3,), ("down_proj", False): (3,)},
        ),
        ("phi3", "model.layers.0.mlp.gate_up_proj", {("gate_up_proj", True): (3, 67), ("down_proj", False): (3,)}),
        ("gpt2", "transformer.h.1.mlp.c_fc", {("c_fc", True): (3,), ("c_proj", False): (3,)}),
        ("modernbert", "model.layers.0.mlp.Wi", {("Wi", True): (3, 67), ("Wo", False): (3,)}),
        (
            "t5-gated",
            "decoder.block.1.layer.2.DenseReluDense.wi_0",
            {("wi_0", True): (3,), ("wi_1", True): (3,), ("wo", False): (3,)},
        ),
    ],
)
def test_the_linear_layers_of_an_mlp_are_coupled_index_by_index(
    name: str, module: str, expected: dict[tuple[str, bool], tuple[int, ...]]
) -> None:
    inside = module.rpartition(".")[0]
    wanted = {(f"{inside}.{linear}", produces): indices for (linear, produces), indices in expected.items()}
    assert members(name, module) == wanted


def test_what_writes_to_the_residual_stream_is_coupled_with_all_layers() -> None:
    found = dependencies_of("llama")
    coupled = list(found.members(found.twin.get_submodule("model.layers.0.mlp.down_proj"), (0,)))
    names = {member.name for member in coupled}
    assert {"model.embed_tokens", "model.norm", "lm_head", "model.layers.1.mlp.up_proj"} <= names
    assert {f"model.layers.{i}.self_attn" for i in (0, 1)} <= names


@pytest.mark.parametrize(
    "name", ["llama", "phi3", "gpt2", "falcon-mqa", "t5-gated", "bart", "vit", "modernbert", "mixtral"]
)
def test_the_walk_finds_what_torch_pruning_s_own_finds(name: str) -> None:
    found = dependencies_of(name)
    graph = found._graph
    traced = [m for m in found.twin.modules() if isinstance(m, nn.Linear | Conv1D | Opaque) and found.is_traced(m)]
    for module in traced:
        units = (0, outputs_of(module) - 1) if not isinstance(module, Opaque) else (0, 3)
        root = graph.get_pruner_of_module(module).prune_out_channels
        group = graph.get_pruning_group(module, root, idxs=list(units))
        theirs = [(item.dep.target, item.dep.handler, sorted(item.idxs)) for item in group]
        ours = [(*place, sorted(indices)) for place, indices in found._walk(module, units).items()]
        assert ours == theirs


def test_the_work_of_a_walk_grows_with_the_layers_and_not_with_their_square() -> None:
    def steps(layers: int) -> int:
        config = zoo.ZOO["llama"].config(num_hidden_layers=layers)
        twin = twin_of(zoo.ZOO["llama"].model_class, config)
        for layer in twin.model.layers:
            layer.self_attn = Opaque(layer.self_attn, config.hidden_size)
        found = Dependencies(twin, {"input_ids": torch.zeros(1, 4, dtype=torch.long, device="meta")})
        count = 0

        def counted(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(counted)
        try:
            list(found.members(twin.model.layers[0].mlp.down_proj, (0,)))
            for layer in twin.model.layers:
                list(found.members(layer.mlp.up_proj, (0,)))
        finally:
            sys.setprofile(None)
        return count

    with torch.enable_grad():
        few, many = steps(4), steps(16)
    assert many < 4.5 * few


def test_a_member_knows_its_module_and_indices() -> None:
    found = dependencies_of("llama")
    module = found.twin.get_submodule("model.layers.0.mlp.gate_proj")
    assert CoupledModule("model.layers.0.mlp.gate_proj", module, True, (5, 9)) in list(found.members(module, (5, 9)))


def test_layers_that_the_forward_pass_does_not_reach_are_known() -> None:
    found = dependencies_of("llama")
    assert found.is_traced(found.twin.get_submodule("model.layers.0.mlp.up_proj"))
    assert not found.is_traced(nn.Linear(2, 2))


class Block(nn.Module):
    """Gives twice its input, and something beside."""

    attribute = 7

    def forward(self, hidden_states: torch.Tensor, flag: bool = False) -> tuple[torch.Tensor, str]:
        return 2 * hidden_states, "beside"


def test_an_opaque_block_keeps_the_number_of_outputs_and_the_attributes() -> None:
    opaque = Opaque(Block(), 4)
    states = torch.empty(2, 4, device="meta")
    node, beside = opaque(states)
    assert (node.shape, beside) == ((2, 4), "beside")
    assert [tuple(out.shape) for out in opaque(hidden_states=states)[:1]] == [(2, 4)]
    assert opaque.attribute == 7
    assert [name for name, _ in opaque.named_parameters()] == ["opaque_scale"]
    assert Opaque(Block(), 4, run=False, outputs=3)(states)[1:] == (None, None)
    with pytest.raises(AttributeError, match="nothing"):
        _ = opaque.nothing


def test_an_opaque_block_that_does_not_run_gives_one_tensor() -> None:
    assert Opaque(Block(), 4, run=False)(torch.empty(2, 4, device="meta")).shape == (2, 4)


def test_the_twin_is_never_cut() -> None:
    found = dependencies_of("gpt2")
    before = {name: tuple(parameter.shape) for name, parameter in copy.copy(found.twin).named_parameters()}
    list(found.members(found.twin.get_submodule("transformer.h.0.mlp.c_fc"), (0, 1, 2)))
    assert {name: tuple(parameter.shape) for name, parameter in found.twin.named_parameters()} == before


def test_outputs_of_linear_and_of_transposed_layers() -> None:
    assert outputs_of(nn.Linear(3, 5)) == 5
    assert outputs_of(Conv1D(5, 3)) == 5
