from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zoo
from hiding import CASES, LOUD, hidden_by_hand, units, without_channels
from hypothesis import given, settings
from hypothesis import strategies as st
from shrinking import counted, dense, graph_of, masked_outputs, outputs
from torch import nn
from transformers import AutoModelForCausalLM, LlamaModel
from workbench import planned, relative

from passes.budget import reachable_counts
from passes.errors import UnsupportedModelError
from passes.families import AttentionBlock
from passes.graph import Kind, Role
from passes.models import Probe, count_parameters, twin_of
from passes.options import TraceOptions
from passes.pipeline import Program
from passes.shrink import ShrinkPass, build_compact
from passes.trace import trace
from passes.trace.norms import norm_offset, odd_constant


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=2, deadline=None, derandomize=True)
@given(hidden=st.sampled_from((8, 16, 24, 32)), seed=st.integers(0, 999))
def test_shrunk_equals_masked_equals_zeroed_by_hand(name: str, hidden: int, seed: int) -> None:
    model, graph = dense(name, **LOUD), graph_of(name, hidden=True, **LOUD)
    kept = units(graph, hidden, seed)
    expected = outputs(hidden_by_hand(name, model, kept), name)
    compact = build_compact(model, graph, kept)
    assert relative(masked_outputs(model, graph, kept, name), expected) < 1e-5
    assert relative(outputs(compact, name), expected) < 1e-5
    assert count_parameters(compact) == graph.parameters(counted(kept))
    assert not type(compact).__name__.startswith("Compact")


@pytest.mark.parametrize("changes", [{"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": False}])
def test_biases_and_untied_heads(changes: dict[str, object]) -> None:
    model, graph = dense("llama", **LOUD, **changes), graph_of("llama", hidden=True, **LOUD, **changes)
    kept = units(graph, 16, 0)
    expected = outputs(hidden_by_hand("llama", model, kept), "llama")
    assert relative(masked_outputs(model, graph, kept, "llama"), expected) < 1e-5
    assert relative(outputs(build_compact(model, graph, kept), "llama"), expected) < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_an_untied_gemma_has_its_own_head(tied: bool) -> None:
    changes = {**LOUD, "tie_word_embeddings": tied}
    model, graph = dense("gemma", **changes), graph_of("gemma", hidden=True, **changes)
    kept = units(graph, 24, 1)
    compact = build_compact(model, graph, kept)
    assert relative(outputs(compact, "gemma"), outputs(hidden_by_hand("gemma", model, kept), "gemma")) < 1e-5
    assert (compact.lm_head.weight is compact.model.embed_tokens.weight) is tied


@pytest.mark.parametrize("name", CASES[:-1])
def test_constants_and_ties_survive_reload(name: str, tmp_path: Path) -> None:
    model, graph = dense(name, **LOUD), graph_of(name, hidden=True, **LOUD)
    compact = build_compact(model, graph, units(graph, 24, 3))
    compact.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(outputs(again, name), outputs(compact, name))
    assert (again.config.hidden_size, again.config.head_dim) == (24, model.model.layers[0].self_attn.head_dim)
    assert again.config.rms_norm_eps == pytest.approx(0.3 * 32 / 24)
    shared = again.lm_head.weight is again.model.embed_tokens.weight
    assert shared is model.config.tie_word_embeddings
    scale = float(getattr(again.model.embed_tokens, "embed_scale", math.nan))
    assert name.startswith("gemma") == (abs(scale - math.sqrt(24)) < 1e-6)


@pytest.mark.parametrize("name", CASES[:-1])
def test_half_precision_stays_within_its_rounding(name: str) -> None:
    model, graph = zoo.build(name).bfloat16(), graph_of(name, hidden=True)
    program = Program(model, Probe.of(model), graph=replace(graph, dtype=torch.bfloat16))
    result = ShrinkPass()(planned(program, units(program.traced, 24, 0)))
    (parity,) = result.program.history[-1].parity
    assert parity.value < parity.tolerance
    assert {parameter.dtype for parameter in result.program.model.parameters()} == {torch.bfloat16}


def test_the_rounding_of_gemmas_normaliser_is_made_up_for() -> None:
    """In bf16 the root of 32 is 5.65625 and that of 24 is 4.90625, whose ratio is 0.17 % off."""
    model, graph = zoo.build("gemma").bfloat16(), graph_of("gemma", hidden=True)
    kept = {d.name: tuple(range(d.size)) for d in graph.dimensions} | {"hidden": tuple(range(24))}
    small = build_compact(model, graph, kept).model
    wanted = model.model.embed_tokens.weight[:, :24].double() * 5.65625 / 4.90625
    assert torch.equal(small.embed_tokens.weight, wanted.bfloat16())
    factor = math.sqrt(32 / 24) * 4.90625 / 5.65625
    assert torch.equal(small.norm.weight, ((model.model.norm.weight[:24].double() + 1) * factor - 1).bfloat16())


def test_what_writes_the_stream_and_tied_heads_stay_bit_by_bit() -> None:
    model, channels = dense("qwen2"), tuple(range(0, 32, 2))
    graph = graph_of("qwen2", hidden=True)
    kept = {d.name: tuple(range(d.size)) for d in graph.dimensions} | {"hidden": channels}
    small, large = build_compact(model, graph, kept).state_dict(), model.state_dict()
    rows = list(channels)
    for name, tensor in small.items():
        if "norm" in name:
            assert torch.equal(tensor, (large[name][rows].double() * math.sqrt(2)).float())
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            assert torch.equal(tensor, large[name][rows])
        else:
            assert torch.equal(tensor, large[name][..., rows] if tensor.dim() == 2 else large[name])


@pytest.mark.parametrize("name", ["gemma2", "qwen3_moe"])
def test_the_resized_class_has_the_hidden_size_as_well(name: str) -> None:
    model, graph = dense(name, **LOUD), graph_of(name, hidden=True, custom_code=True, **LOUD)
    kept = units(graph, 16, 0) | {d.name: (0, 2, 3) for d in graph.of_kind(Kind.KV_GROUPS)}
    if name == "qwen3_moe":
        kept |= {d.name: tuple(range(12)) for d in graph.of_kind(Kind.EXPERT_CHANNELS)}  # stock wants multiples of 8
    compact = build_compact(model, graph, kept)
    assert relative(outputs(compact, name), masked_outputs(model, graph, kept, name)) < 1e-5
    assert type(compact).__name__.startswith("Compact")
    assert compact.config.hidden_size == 16


@pytest.mark.parametrize("name", sorted(set(zoo.ZOO) - set(CASES) - {"qwen3_moe-mixed"}))
def test_other_families_are_refused_with_the_reason(name: str) -> None:
    reason = "residual stream each" if zoo.ZOO[name].task == "seq2seq-lm" else "is not a plain RMS norm"
    with pytest.raises(UnsupportedModelError, match=f"the hidden size of this .* model has to stay: .*{reason}"):
        graph_of(name, hidden=True)


def test_of_a_model_without_a_head_it_stays() -> None:
    with pytest.raises(UnsupportedModelError, match="without a head, its hidden states are what it gives"):
        trace(zoo.ZOO["llama"].config(), model_type=LlamaModel, options=TraceOptions(hidden=True))


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral"])
def test_everything_else_is_as_without_it(name: str) -> None:
    plain, more = graph_of(name), graph_of(name, hidden=True)
    assert more.dimensions[:-1] == plain.dimensions
    assert more.widths[:-1] == plain.widths
    assert more.cost() == plain.cost()
    assert more.dimensions[-1].name == more.widths[-1].name == "hidden"


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "olmo2", "phi3", "qwen3_moe-mixed"])
def test_every_parameter_is_coupled_with_it_or_explained(name: str) -> None:
    """The same from the shapes of two stock models: what becomes narrower with the hidden size alone."""
    model = dense(name)
    graph = graph_of(name, hidden=True)
    sizes = {"hidden_size": 24, "head_dim": model.model.layers[0].self_attn.head_dim}
    smaller = twin_of(type(model), type(model.config).from_dict({**model.config.to_dict(), **sizes}))
    shapes = {name: tuple(parameter.shape) for name, parameter in smaller.named_parameters()}
    assert {name: graph.shape(name, {"hidden": 24}) for name in graph.shapes} == shapes
    assert graph.parameters({"hidden": 24}) == sum(map(math.prod, shapes.values()))
    assert graph.unit_parameters(graph.by_name["hidden"]) * 8 == graph.parameters() - graph.parameters({"hidden": 24})


@pytest.mark.parametrize(
    ("name", "changes", "counts"),
    [
        ("llama", {}, [8, 16, 24, 32]),  # written as Mistral
        ("llama", {"attention_bias": True, "num_attention_heads": 16, "num_key_value_heads": 16}, [16, 32]),
        ("gemma2", {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48}, [24, 48]),
        ("gemma2", {"num_attention_heads": 5, "num_key_value_heads": 1, "hidden_size": 40}, [40]),
    ],
)
def test_the_counts_suit_every_number_of_heads(name: str, changes: dict[str, object], counts: list[int]) -> None:
    graph = graph_of(name, hidden=True, **changes)
    hidden = graph.width("hidden")
    assert list(hidden.counts) == list(hidden.stock) == counts
    assert reachable_counts(hidden, None) == counts
    for heads in next(width for width in graph.widths if width.kind in (Kind.KV_GROUPS, Kind.QUERY_HEADS)).stock:
        kept = graph.uniform({"hidden": counts[0], "kv_groups": heads, "query_heads": heads})
        build_compact(dense(name, **changes), graph, {each: tuple(range(count)) for each, count in kept.items()})


def test_only_rms_norms_are_taken_for_such() -> None:
    assert norm_offset(dense("llama").model.norm) == 0
    assert norm_offset(dense("gemma").model.norm) == 1
    assert norm_offset(nn.LayerNorm(32, bias=False)) is None
    assert norm_offset(nn.RMSNorm(32, eps=1e-5)) == 0

    class Doubled(type(dense("llama").model.norm)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(2 * x)  # the same but for epsilon

    assert norm_offset(Doubled(32)) is None


def test_a_constant_that_nothing_compensates_is_found() -> None:
    model = dense("gemma")
    dimension = graph_of("gemma", hidden=True).by_name["hidden"]
    changes = {"hidden_size": 16, "rms_norm_eps": 2 * model.config.rms_norm_eps}
    small = twin_of(type(model), type(model.config).from_dict({**model.config.to_dict(), **changes}))
    assert odd_constant(model, small, dimension, 16) is None
    small.model.layers[1].self_attn.scaling = 0.25
    assert "model.layers.1.self_attn.scaling 0.25, not 0.3535" in str(odd_constant(model, small, dimension, 16))
    small.model.layers[1].self_attn.scaling = model.model.layers[1].self_attn.scaling
    small.model.norm.eps = 1e-6
    assert "model.norm.eps 1e-06, not 2e-06" in str(odd_constant(model, small, dimension, 16))


def test_roles_say_who_writes_and_who_reads() -> None:
    dimension = graph_of("llama", hidden=True, tie_word_embeddings=False).by_name["hidden"]
    writes = {part.parameter.split(".")[-2] for part in dimension.of_role(Role.PRODUCE)}
    reads = {part.parameter.split(".")[-2] for part in dimension.of_role(Role.CONSUME)}
    assert writes == {"embed_tokens", "o_proj", "down_proj"}
    assert reads == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head"}
    assert len(dimension.of_role(Role.NORM)) == 5


def test_a_reader_that_nothing_names_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    every = AttentionBlock.hidden_slices
    monkeypatch.setattr(AttentionBlock, "hidden_slices", lambda block: every(block)[1:])
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.self_attn\.q_proj\.weight is coupled with it"):
        trace(dense("llama").config, options=TraceOptions(hidden=True))


def test_silent_channels_are_zero_in_the_whole_stream() -> None:
    model = dense("gemma2")
    gone = [1, 5, 30]
    batch = zoo.inputs(model, zoo.ZOO["gemma2"])
    states = without_channels(model, gone)(**batch, output_hidden_states=True).hidden_states
    assert all(bool((state[..., gone] == 0).all()) for state in states)
