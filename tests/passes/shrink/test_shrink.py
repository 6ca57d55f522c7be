from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from shrinking import counted, some_units
from transformers import PreTrainedModel
from workbench import adapted, build_model, plan_of, planned, random_kept, relative, silence_by_hand, traced

import passes.shrink.cut
from passes.errors import PostconditionError, PreconditionError
from passes.graph import PruningGraph
from passes.models import Probe, base_model, count_parameters, masked, positions, vendor
from passes.options import TraceOptions
from passes.pipeline import Program
from passes.shrink import ShrinkPass
from passes.trace import TracePass, trace

VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"tie_word_embeddings": False, "head_dim": 16, "num_key_value_heads": 8}),
    ("llama", {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48, "intermediate_size": 100}),
    ("mistral", {"sliding_window": 6}),
    ("mistral", {"head_dim": 4, "tie_word_embeddings": False}),
    ("qwen2", {}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "num_key_value_heads": 2}),
    ("qwen3", {}),
    ("qwen3", {"head_dim": 12, "tie_word_embeddings": False, "attention_bias": True, "num_hidden_layers": 3}),
]


def program_of(index: int) -> Program:
    """The program of a variant, traced."""
    family, changes = VARIANTS[index]
    model = build_model(family, **changes)
    return Program(model, Probe.of(model), graph=graph_of(index))


@lru_cache
def graph_of(index: int) -> PruningGraph:
    family, changes = VARIANTS[index]
    return trace(build_model(family, **changes).config)


def padded_logits(model: PreTrainedModel, probe: Probe) -> torch.Tensor:
    """Logits of the real tokens in one forward pass without cache."""
    ids, mask = probe.inputs["input_ids"], probe.inputs["attention_mask"]
    output = model(ids, attention_mask=mask, position_ids=positions(mask), use_cache=False)
    return output.logits[mask.bool()]


def cached_logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits of 6 tokens at once and then of each further token with the cache of those before."""
    output = model(ids[:, :6], use_cache=True)
    found = [output.logits]
    for column in range(6, ids.shape[1]):
        past = vendor.with_cache(model, vendor.cache_of(output))
        output = model(ids[:, column : column + 1], use_cache=True, **past)
        found.append(output.logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize("index", range(len(VARIANTS)), ids=lambda i: VARIANTS[i][0])
@settings(max_examples=4, deadline=None, derandomize=True)
@given(data=st.data())
@torch.no_grad()
def test_shrunk_equals_masked(index: int, data: st.DataObject) -> None:
    family, changes = VARIANTS[index]
    graph, model = graph_of(index), build_model(family, **changes)
    groups = data.draw(st.sampled_from(graph.width("kv_groups").counts), "groups")
    channels = data.draw(st.sampled_from(graph.width("mlp_channels").counts), "channels")
    kept = random_kept(graph, groups, channels, data.draw(st.integers(0, 999), "seed"))
    silenced = silence_by_hand(model, kept)
    program = planned(Program(model, Probe.of(model, seed=3), graph=graph), kept)
    with masked(model, graph, program.masks):
        by_masks = padded_logits(model, program.probe), cached_logits(model, program.probe.inputs["input_ids"])
    shrunk = ShrinkPass()(program).program.model
    by_shrinking = padded_logits(shrunk, program.probe), cached_logits(shrunk, program.probe.inputs["input_ids"])
    by_hand = padded_logits(silenced, program.probe), cached_logits(silenced, program.probe.inputs["input_ids"])
    for a, b, c in zip(by_masks, by_shrinking, by_hand, strict=True):
        assert relative(b, a) < 1e-5
        assert relative(b, c) < 1e-5
    assert count_parameters(shrunk) == graph.parameters({name: len(units) for name, units in kept.items()})


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_family_passes_its_own_verification(name: str) -> None:
    program = TracePass(TraceOptions(custom_code=True))(Program.start(zoo.build(name))).program
    kept = some_units(program.traced, seed=5)
    result = ShrinkPass()(planned(program, kept))
    (parity,) = result.program.history[-1].parity
    assert parity.value < parity.tolerance <= 1e-5
    assert count_parameters(result.program.model) == program.traced.parameters(counted(kept))
    assert program.traced.parameters(counted(kept)) < program.traced.parameters()


@torch.no_grad()
def test_the_shrunk_tensors_are_the_kept_rows_and_columns() -> None:
    model = build_model("qwen2")
    original = {name: value.clone() for name, value in model.state_dict().items()}
    program = Program(model, Probe.of(model), graph=graph_of(6))
    kept = {
        "layers.0.kv_groups": (1, 3),
        "layers.0.mlp_channels": (0, 9, 63),
        "layers.1.kv_groups": (0, 2),
        "layers.1.mlp_channels": (5, 6, 7),
    }
    small = ShrinkPass()(planned(program, kept)).program.model.state_dict()
    query, key = [*range(16, 32), *range(48, 64)], [*range(8, 16), *range(24, 32)]
    path = "model.layers.0.self_attn"
    for name, rows in (("q_proj", query), ("k_proj", key), ("v_proj", key)):
        assert torch.equal(small[f"{path}.{name}.weight"], original[f"{path}.{name}.weight"][rows])
        assert torch.equal(small[f"{path}.{name}.bias"], original[f"{path}.{name}.bias"][rows])
    assert torch.equal(small[f"{path}.o_proj.weight"], original[f"{path}.o_proj.weight"][:, query])
    mlp = "model.layers.1.mlp"
    assert torch.equal(small[f"{mlp}.gate_proj.weight"], original[f"{mlp}.gate_proj.weight"][5:8])
    assert torch.equal(small[f"{mlp}.down_proj.weight"], original[f"{mlp}.down_proj.weight"][:, 5:8])
    assert torch.equal(small["model.embed_tokens.weight"], original["model.embed_tokens.weight"])


def test_attributes_follow_the_shapes() -> None:
    model = build_model("qwen3")
    model.generation_config.top_k = 7
    program = Program(model, Probe.of(model), graph=graph_of(8))
    shrunk = ShrinkPass()(planned(program, random_kept(program.traced, 3, 24, seed=0))).program.model
    config = shrunk.config
    widths = (config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.intermediate_size)
    assert widths == (6, 3, 8, 24)
    block = shrunk.model.layers[1].self_attn
    assert (block.q_proj.out_features, block.o_proj.in_features, block.k_proj.out_features) == (48, 48, 24)
    assert shrunk.lm_head.weight is shrunk.model.embed_tokens.weight
    assert (shrunk.generation_config.eos_token_id, shrunk.generation_config.top_k) == (256, 7)


@pytest.mark.parametrize("parameter", ["model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight"])
def test_a_wrong_weight_is_caught_with_pass_tensor_and_number(monkeypatch: pytest.MonkeyPatch, parameter: str) -> None:
    original = passes.shrink.cut.build_stock

    def wrong(config, state, like):
        model = original(config, state, like)
        with torch.no_grad():
            model.get_parameter(parameter)[0, 0] += 1.0
        return model

    monkeypatch.setattr(passes.shrink.cut, "build_stock", wrong)
    model = build_model("llama", tie_word_embeddings=False, head_dim=16, num_key_value_heads=8)
    program = Program(model, Probe.of(model), graph=graph_of(2))
    message = rf"pass 'shrink' failed its verification: {parameter} is not what .* differs in 1 of [\d,]+ elements"
    with pytest.raises(PostconditionError, match=message):
        ShrinkPass()(planned(program, random_kept(program.traced, 2, 24, seed=0)))


def test_a_tensor_that_both_models_hold_must_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    original = passes.shrink.cut.build_stock

    def wrong(config, state, like):
        model = original(config, state, like)
        with torch.no_grad():
            model.lm_head.weight[0, 0] += 1.0
        return model

    monkeypatch.setattr(passes.shrink.cut, "build_stock", wrong)
    program = program_of(2)
    with pytest.raises(PostconditionError, match=r"'shrink' changed lm_head\.weight, which it has to leave as it is"):
        ShrinkPass()(planned(program, random_kept(program.traced, 2, 24, seed=0)))


def test_a_layer_that_computes_something_else_is_caught_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tensors and settings are right; one layer of the compact model multiplies by 1.0001."""
    original = passes.shrink.cut.build_stock

    def wrong(config, state, like):
        model = original(config, state, like)
        model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output * 1.0001)
        return model

    monkeypatch.setattr(passes.shrink.cut, "build_stock", wrong)
    program = program_of(0)
    message = (
        r"'shrink' changed what the model computes: model\.layers\.1 differs .* by \d\.\d\de-0\d on the same inputs"
    )
    with pytest.raises(PostconditionError, match=message):
        ShrinkPass()(planned(program, random_kept(program.traced, 2, 24, seed=0)))


def test_masks_that_are_not_the_plan_s_are_refused() -> None:
    program = planned(program_of(0), random_kept(program_of(0).traced, 2, 24, seed=0))
    masks = {**program.masks, "layers.1.mlp_channels": program.masks["layers.1.mlp_channels"].roll(1)}
    with pytest.raises(PreconditionError, match=r"masks of layers\.1\.mlp_channels are not those of the plan"):
        ShrinkPass()(replace(program, masks=masks))


def test_a_plan_with_another_parameter_count_is_caught() -> None:
    program = program_of(0)
    kept = random_kept(program.traced, 2, 24, seed=0)
    program = planned(program, kept)
    lying = type(program.plan)(**{**vars(program.plan), "target_parameters": 12345})
    with pytest.raises(PostconditionError, match="the plan says 12,345"):
        ShrinkPass()(Program(**{**vars(program), "plan": lying}))


def test_a_plan_that_keeps_everything_changes_nothing() -> None:
    model = build_model("llama")
    program = Program(model, Probe.of(model), graph=graph_of(0))
    result = ShrinkPass()(planned(program, random_kept(program.traced, 4, 64, seed=0)))
    assert not result.modified
    assert result.program.model is model
    assert result.program.masks is None


def test_a_plan_and_a_merged_model_are_needed() -> None:
    program = adapted(build_model("llama"))
    plan = plan_of(program, random_kept(program.traced, 2, 24, seed=0))
    for wrong in (
        Program(**{**vars(program), "plan": plan}),
        Program(**{**vars(program), "model": build_model("llama")}),
    ):
        with pytest.raises(PreconditionError, match="needs a plan and a merged model"):
            ShrinkPass()(wrong)


def test_half_precision_shrinks_within_its_rounding() -> None:
    program = traced(build_model("llama").bfloat16())
    result = ShrinkPass()(planned(program, random_kept(program.traced, 2, 24, seed=0)))
    assert {p.dtype for p in result.program.model.parameters()} == {torch.bfloat16}
    assert result.program.history[-1].parity[0].value < result.program.history[-1].parity[0].tolerance < 1e-5


@pytest.mark.parametrize(("entry", "value"), [("eos_token_id", 3), ("use_cache", False), ("initializer_range", 0.5)])
def test_an_entry_that_no_module_reads_when_it_is_built_is_held_to_the_source(entry: str, value: object) -> None:
    program = traced(build_model("llama"))
    program = planned(program, random_kept(program.traced, 2, 24, seed=3))
    after = ShrinkPass()(program).program
    ShrinkPass().ensures(program, after)
    setattr(base_model(after.model).config, entry, value)
    with pytest.raises(PostconditionError, match=rf"config\.{entry} is {value}, the source has"):
        ShrinkPass().ensures(program, after)
