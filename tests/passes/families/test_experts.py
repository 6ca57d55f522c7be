from __future__ import annotations

import pytest
import torch
import zoo
from shrinking import dense, graph_of
from torch import nn

from passes.errors import UnsupportedModelError
from passes.families import ExpertsBlock
from passes.graph import Kind, Role
from passes.models import masked

PATH = "model.layers.1.mlp"


def block_of(name: str) -> ExpertsBlock:
    return ExpertsBlock.read(dense(name), PATH)


@pytest.mark.parametrize(("name", "channels"), [("mixtral", 64), ("qwen3_moe", 24)])
def test_experts_are_units_with_their_rows_of_the_router(name: str, channels: int) -> None:
    experts, *inside = block_of(name).dimensions()
    assert (experts.name, experts.kind, experts.size, experts.width) == (
        "layers.1.experts", Kind.EXPERTS, 4, "experts",
    )  # fmt: skip
    assert [(part.parameter, part.axis, part.role) for part in experts.slices] == [
        (f"{PATH}.experts.gate_up_proj", 0, Role.OWN),
        (f"{PATH}.experts.down_proj", 0, Role.OWN),
        (f"{PATH}.gate.weight", 0, Role.ROUTE),
    ]
    assert [d.name for d in inside] == [f"layers.1.expert_channels.{expert}" for expert in range(4)]
    assert {(d.kind, d.size, d.width) for d in inside} == {(Kind.EXPERT_CHANNELS, channels, "expert_channels")}


def test_a_channel_of_an_expert_is_a_row_of_its_gate_and_of_its_up_and_a_column_of_its_down() -> None:
    third = block_of("mixtral").dimensions()[1 + 2]
    gate_up, down = third.slices
    assert (gate_up.parameter, gate_up.axis, gate_up.at, gate_up.indices([5])) == (
        f"{PATH}.experts.gate_up_proj", 1, 2, [5, 64 + 5],
    )  # fmt: skip
    assert (down.parameter, down.axis, down.at, down.indices([5])) == (f"{PATH}.experts.down_proj", 2, 2, [5])


@torch.no_grad()
def test_a_channel_contributes_its_gate_times_its_up_to_its_column() -> None:
    """The indices above mean what the model computes: one expert's output, channel by channel."""
    model = zoo.build("mixtral")
    experts = model.model.layers[1].mlp.experts
    third = block_of("mixtral").dimensions()[1 + 2]
    gate_up, down = third.slices
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(5, 32)
    for channel in range(64):
        gate, up = (experts.gate_up_proj[2][row] for row in gate_up.indices([channel]))
        (column,) = down.indices([channel])
        total += torch.outer(nn.functional.silu(x @ gate) * (x @ up), experts.down_proj[2][:, column])
    only = torch.full((5, 1), 2), torch.ones(5, 1)
    torch.testing.assert_close(experts(x, *only), total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.register_parameter("sink", nn.Parameter(torch.ones(4))), r"mlp\.sink with shape \(4,\)"),
        (lambda m: m.add_module("shared", nn.Linear(32, 32)), r"mlp\.shared\.bias with shape \(32,\)"),
        (lambda m: setattr(m, "gate", nn.Identity()), r"no gate\.weight: its experts do not lie"),
        (lambda m: setattr(m.experts, "down_proj", nn.Parameter(torch.ones(4, 32, 60))), "do not fit together"),
        (lambda m: setattr(m.experts, "down_proj", nn.Parameter(torch.ones(3, 32, 64))), "do not fit together"),
        (lambda m: setattr(m.experts, "gate_up_proj", nn.Parameter(torch.ones(4, 64, 32))), "do not fit together"),
    ],
)
def test_experts_that_lie_otherwise_are_refused_with_the_parameter(change, message: str) -> None:
    model = zoo.build("mixtral")
    change(model.model.layers[1].mlp)
    with pytest.raises(UnsupportedModelError, match=message):
        ExpertsBlock.read(model, PATH)


def test_layers_without_experts_keep_their_mlp_channels() -> None:
    graph = graph_of("qwen3_moe-mixed")
    kinds = {layer: {d.kind for d in graph.dimensions if d.layer == layer} for layer in (0, 1)}
    assert kinds[0] == {Kind.KV_GROUPS, Kind.MLP_CHANNELS}
    assert kinds[1] == {Kind.KV_GROUPS, Kind.EXPERTS, Kind.EXPERT_CHANNELS}
    assert {width.name: width.size for width in graph.widths} == {
        "kv_groups": 4, "mlp_channels": 64, "experts": 4, "expert_channels": 24,
    }  # fmt: skip


def test_as_many_experts_stay_as_a_token_visits() -> None:
    assert graph_of("mixtral").width("experts").counts == (2, 3, 4)
    assert graph_of("qwen3_moe", num_experts_per_tok=3).width("experts").counts == (3, 4)
    graph = graph_of("qwen3_moe", num_experts_per_tok=4)
    assert graph.width("experts").counts == (4,)
    assert "experts" in graph.untouched


def test_channels_of_experts_are_multiples_of_eight() -> None:
    assert graph_of("mixtral").width("expert_channels").counts == (8, 16, 24, 32, 40, 48, 56, 64)
    assert graph_of("qwen3_moe").width("expert_channels").counts == (8, 16, 24)
    odd = graph_of("qwen3_moe", moe_intermediate_size=20).width("expert_channels")
    assert odd.counts == (8, 16, 20)


@torch.no_grad()
def test_a_masked_expert_is_never_chosen_and_the_others_keep_their_numbers() -> None:
    model, graph = dense("mixtral"), graph_of("mixtral")
    seen: list[torch.Tensor] = []
    masks = {d.name: torch.ones(d.size, dtype=torch.bool) for d in graph.dimensions}
    masks["layers.0.experts"][1] = False
    gate = model.model.layers[0].mlp.gate
    hook = model.model.layers[0].mlp.experts.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    before = set(gate.state_dict())
    with masked(model, graph, masks):
        model(**zoo.inputs(model, zoo.ZOO["mixtral"]))
    hook.remove()
    assert set(seen[0].flatten().tolist()) == {0, 2, 3}
    assert set(gate.state_dict()) == before
    assert "weight" not in vars(gate)
    assert isinstance(gate.weight, nn.Parameter)
