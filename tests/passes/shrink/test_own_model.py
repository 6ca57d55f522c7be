"""A model of the user's own, with attention that no stock class has: described, traced, masked, tuned and shrunk."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from workbench import Blocks, planned, random_units, relative, traced

from passes.decide import DecidePass
from passes.errors import UnsupportedModelError
from passes.families import FAMILIES, AttentionLayout, Family, Packing, register_attention
from passes.graph import PruningGraph, Role
from passes.models import count_parameters, masked
from passes.options import Target, TraceOptions, TuneOptions
from passes.pipeline import Pipeline, Program
from passes.shrink import ShrinkPass
from passes.trace import TracePass, trace
from passes.tuning import AttachPass, MergePass, TunePass

HIDDEN, HEADS, GROUPS, SIZE, CHANNELS = 24, 6, 3, 5, 40


class OddConfig(PreTrainedConfig):
    model_type = "odd-for-lpc"

    def __init__(self, vocab_size: int = 272, hidden_size: int = HIDDEN, lanes: int = HEADS, **more: object) -> None:
        self.vocab_size, self.hidden_size, self.lanes = vocab_size, hidden_size, lanes
        super().__init__(**{"pad_token_id": 256, "eos_token_id": 256, "bos_token_id": 256, **more})


class OddMixer(nn.Module):
    """One layer gives for each KV head its two queries, its key and its value; each query head has gains of its own."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        self.lanes, self.pairs, self.lane_size = config.lanes, GROUPS, SIZE
        self.packed = nn.Linear(config.hidden_size, (config.lanes + 2 * GROUPS) * SIZE)
        self.gain = nn.ParameterDict({"weight": nn.Parameter(torch.ones(config.lanes, SIZE))})

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows, tokens = states.shape[:2]
        each = self.lanes // self.pairs
        packed = self.packed(states).view(rows, tokens, self.pairs, each + 2, SIZE).permute(0, 2, 3, 1, 4)
        queries, key, value = packed[:, :, :each], packed[:, :, each : each + 1], packed[:, :, each + 1 :]
        gained = queries * self.gain["weight"].view(self.pairs, each, 1, SIZE)
        weights = (gained @ key.mT / SIZE**0.5).masked_fill(~mask[:, None, None], -1e9).softmax(-1)
        return (weights @ value).permute(0, 3, 1, 2, 4).reshape(rows, tokens, self.lanes * SIZE)


class OddLayer(nn.Module):
    """The output projection lies outside of the mixer."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.mixer = OddMixer(config)
        self.mix_out = nn.Linear(config.lanes * SIZE, config.hidden_size)
        self.wide = nn.Linear(config.hidden_size, CHANNELS)
        self.narrow = nn.Linear(CHANNELS, config.hidden_size)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = states + self.mix_out(self.mixer(self.norm(states), mask))
        return states + self.narrow(torch.cos(self.wide(states)))  # cos(0) = 1: a channel that is zero is still heard


class OddForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = OddConfig

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.steps = nn.ModuleList(OddLayer(config) for _ in range(2))
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        **_: object,
    ) -> CausalLMOutput:
        rows, tokens = input_ids.shape
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=input_ids.device).tril().expand(rows, -1, -1)
        if attention_mask is not None:
            mask = mask & attention_mask.bool()[:, None]
        states = [self.words(input_ids)]
        for layer in self.steps:
            states.append(layer(states[-1], mask))
        logits = self.head(states[-1])
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits, hidden_states=tuple(states) if output_hidden_states else None)


FAMILY = Family(
    (
        AttentionLayout(
            block="mixer",
            projections=("packed",),
            output=".mix_out",
            packing=Packing.GROUPS,
            head_dim="lane_size",
            query_norms=("gain",),
            attributes={"lanes": "heads", "pairs": "groups"},
        ),
    ),
    heads=None,
    kv_heads=None,
    head_dim=None,
    channels=None,
)
OWN = TraceOptions(custom_code=True)


@pytest.fixture(autouse=True)
def described() -> Iterator[None]:
    with FAMILIES.restored():
        register_attention("odd-for-lpc", FAMILY)
        yield


def odd() -> OddForCausalLM:
    model, generator = OddForCausalLM(OddConfig()), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm.weight" in name or "gain" in name else 0.3 * noise)
    return model.eval()


def program_of(model: OddForCausalLM) -> Program:
    return TracePass(OWN)(Program.start(model)).program


@torch.no_grad()
def silenced(model: OddForCausalLM, kept: dict[str, tuple[int, ...]]) -> OddForCausalLM:
    found = copy.deepcopy(model)
    for i, layer in enumerate(found.steps):
        for group in set(range(GROUPS)) - set(kept[f"layers.{i}.kv_groups"]):
            for head in (2 * group, 2 * group + 1):
                layer.mix_out.weight[:, head * SIZE : (head + 1) * SIZE] = 0
        for channel in set(range(CHANNELS)) - set(kept[f"layers.{i}.mlp_channels"]):
            layer.narrow.weight[:, channel] = 0
    return found


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(Blocks(3).ids).logits


def test_it_is_refused_while_it_is_not_described() -> None:
    model = odd()
    model.config.model_type = "odder-for-lpc"
    with pytest.raises(UnsupportedModelError, match=r"'odder-for-lpc' is not supported.*register_attention"):
        traced(model)


def test_its_dimensions_are_found() -> None:
    graph = program_of(odd()).traced
    assert {d.name: d.size for d in graph.dimensions} == {
        f"layers.{i}.{name}": size for i in (0, 1) for name, size in (("kv_groups", 3), ("mlp_channels", 40))
    }
    slices = {part.parameter.removeprefix("steps.0."): part for part in graph.by_name["layers.0.kv_groups"].slices}
    assert {name: (part.axis, part.indices([1])) for name, part in slices.items()} == {
        "mixer.packed.weight": (0, list(range(20, 40))),
        "mixer.packed.bias": (0, list(range(20, 40))),
        "mixer.gain.weight": (0, [2, 3]),
        "mix_out.weight": (1, list(range(10, 20))),
    }
    assert slices["mixer.gain.weight"].role is Role.FOLLOW
    assert graph.parameters() == count_parameters(odd())


def test_a_weight_that_the_description_leaves_out_is_refused_by_name() -> None:
    layout = AttentionLayout(
        block="mixer", projections=("packed",), output=".mix_out", packing=Packing.GROUPS, head_dim="lane_size"
    )
    register_attention("odder-for-lpc", Family((layout,)))
    model = odd()
    model.config.model_type = "odder-for-lpc"
    with pytest.raises(UnsupportedModelError, match=r"steps\.0\.mixer\.gain\.weight with shape \(6, 5\)"):
        traced(model)


def test_without_code_of_its_own_nothing_can_go_and_the_reasons_are_told() -> None:
    graph: PruningGraph = trace(OddConfig(), model_type=OddForCausalLM)
    assert all(width.counts == (width.size,) for width in graph.widths)
    assert set(graph.untouched) == {"kv_groups", "mlp_channels"}


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 17, 39])
def test_masked_and_compact_equal_the_model_silenced_by_hand(groups: int, channels: int) -> None:
    model = odd()
    before = copy.deepcopy(model.state_dict())
    program = program_of(model)
    kept = random_units(program.traced, {"kv_groups": groups, "mlp_channels": channels}, seed=groups)
    expected = logits(silenced(model, kept))
    program = planned(program, kept)
    with masked(model, program.traced, program.masks):
        assert relative(logits(model), expected) < 1e-5
    compact = ShrinkPass()(program).program.model
    assert relative(logits(compact), expected) < 1e-5
    assert relative(logits(odd()), expected) > 1e-3
    assert (compact.steps[0].mixer.lanes, compact.steps[1].mixer.pairs) == (2 * groups, groups)
    assert type(compact).__name__ == "CompactOddForCausalLM"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("heads", [1, 2])
def test_query_heads_of_it_go_as_well(heads: int) -> None:
    model = odd()
    options = TraceOptions(custom_code=True, query_heads=True)
    program = TracePass(options)(Program.start(model)).program
    kept = random_units(program.traced, {"query_heads": heads, "mlp_channels": 9}, seed=heads)
    result = ShrinkPass()(planned(program, kept)).program
    assert result.history[-1].parity[0].value < 1e-5
    assert (result.model.steps[0].mixer.lanes, result.model.steps[0].mixer.pairs) == (3 * heads, 3)


def test_it_goes_through_the_whole_pipeline() -> None:
    target = Target(ratio=0.15)
    options = TuneOptions(steps=3, batch_size=4)
    passes = TracePass(OWN), AttachPass(), TunePass(target, Blocks(), options), DecidePass(target, "loraprune")
    tuned = Pipeline(passes)(Program.start(odd())).program
    assert tuned.plan.target_parameters <= 0.85 * count_parameters(odd())
    compact = Pipeline([MergePass(), ShrinkPass()])(tuned).program.model
    assert count_parameters(compact) == tuned.plan.target_parameters
