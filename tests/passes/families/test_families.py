"""Sound by proof: for every family and 50 random plans, the compact model computes what the masked one computes."""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plugins import installed
from shrinking import counted, decoded, dense, graph_of, masked_outputs, outputs, some_units
from workbench import random_units, relative

from passes.errors import OptionError, UnsupportedModelError
from passes.families import FAMILIES, Family, family_of, register_attention
from passes.graph import PruningGraph
from passes.models import count_parameters
from passes.shrink import build_compact

PLANS = 20
POST_NORMS = ("gemma2", "gemma3_text", "olmo2")
"""These norm what a block gives. Where only a channel or two are left, a token's output can be near zero, and the norm
blows its rounding up. There the difference is held against that of the model with itself, rounded otherwise. (Double
precision would not tell: transformers computes these norms in single precision always.)"""
OPERATIONS = 8
"""Roundings on a value's way through a layer, for each one of the weights."""
QUERY_HEAD_PLANS = 5
GROUPED = sorted({*zoo.SEPARATE, "phi3", "falcon-grouped", "mixtral", "qwen3_moe"} - {"opt", "opt-post-norm", "gptj"})


@lru_cache
def dense_outputs(name: str) -> torch.Tensor:
    return outputs(dense(name), name)


@lru_cache
def pristine(name: str) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in zoo.build(name).state_dict().items()}


@st.composite
def plans(draw: st.DrawFn, graph: PruningGraph) -> dict[str, tuple[int, ...]]:
    """Any allowed count of each width, the extremes often; and any units."""
    extremes = {width.name: st.sampled_from((width.counts[0], width.counts[-1])) for width in graph.widths}
    counts = {w.name: draw(st.sampled_from(w.counts) | extremes[w.name], label=w.name) for w in graph.widths}
    return random_units(graph, counts, draw(st.integers(0, 10**6), label="seed"))


def check(name: str, graph: PruningGraph, kept: dict[str, tuple[int, ...]]) -> None:
    """Everything that must hold of a plan for a model of the zoo."""
    model, counts = dense(name), counted(kept)
    expected = masked_outputs(model, graph, kept, name)
    compact = build_compact(model, graph, kept)
    stepwise = decoded(compact, name)
    differences = [relative(found, expected) for found in (outputs(compact, name), stepwise) if found is not None]
    if not max(differences) < 1e-5:
        assert name in POST_NORMS
        assert max(differences) < min(1e-3, OPERATIONS * rounding(name, graph, kept, expected))
    if graph.parameters(counts) < graph.parameters():
        assert relative(expected, dense_outputs(name)) > 1e-3
    assert count_parameters(compact) == graph.parameters(counts)
    shapes = {key: tuple(parameter.shape) for key, parameter in compact.named_parameters()}
    assert shapes == {key: graph.shape(key, counts) for key in graph.shapes}
    assert all(torch.equal(value, pristine(name)[key]) for key, value in model.state_dict().items())


def rounding(name: str, graph: PruningGraph, kept: dict[str, tuple[int, ...]], expected: torch.Tensor) -> float:
    """How far the masked model's own outputs move when each weight moves to the next number of its type."""
    moved = copy.deepcopy(dense(name))
    with torch.no_grad():
        for parameter in moved.parameters():
            up = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)) < 0.5
            parameter.copy_(torch.nextafter(parameter, torch.where(up, torch.inf, -torch.inf)))
    return relative(masked_outputs(moved, graph, kept, name), expected)


def many(name: str, graphs: list[PruningGraph], examples: int) -> None:
    """Check that many random plans for the graphs of one model."""

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def one(data: st.DataObject) -> None:
        graph = graphs[data.draw(st.integers(0, len(graphs) - 1), "graph")]
        check(name, graph, data.draw(plans(graph), "kept"))

    one()


@pytest.mark.parametrize("name", zoo.ZOO)
def test_compact_equals_masked(name: str) -> None:
    """In sizes that the stock class holds, and in those that need code of their own."""
    graphs = [graph_of(name, custom_code=custom_code) for custom_code in (False, True)]
    prunable = [graph for graph in graphs if any(len(width.counts) > 1 for width in graph.widths)]
    assert len(prunable) == (1 if name == "bloom" else 2)
    many(name, prunable, PLANS)


@pytest.mark.parametrize("name", [*GROUPED, "falcon-mqa"])
def test_compact_equals_masked_when_query_heads_go_and_all_kv_heads_stay(name: str) -> None:
    graph = graph_of(name, query_heads=True, custom_code=True)
    heads = dense(name).config.num_attention_heads
    groups = 1 if name == "falcon-mqa" else 4
    assert graph.width("query_heads").counts == tuple(range(1, heads // groups + 1))
    many(name, [graph], QUERY_HEAD_PLANS)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_stock_class_loads_what_it_holds_bit_equal(name: str, tmp_path: Path) -> None:
    graph = graph_of(name)
    kept = some_units(graph, seed=4)
    compact = build_compact(dense(name), graph, kept)
    assert type(compact).__module__.startswith("transformers.")
    compact.save_pretrained(tmp_path)
    loaded = type(compact).from_pretrained(tmp_path).eval()
    state, again = compact.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(value, again[key]) for key, value in state.items())
    assert torch.equal(outputs(loaded, name), outputs(compact, name))
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [type(compact).__name__]
    assert not {"auto_map", "compact"} & set(config)


def test_a_family_is_described_once() -> None:
    before = FAMILIES["llama"]
    with pytest.raises(OptionError, match="'llama' is described already"):
        register_attention("llama", Family())
    assert FAMILIES["llama"] is before


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("stablelm", {"qk_layernorm": True}, "stablelm with qk_layernorm=True is not supported"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ("bert", {"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ("mixtral", {"per_layer_config": {"1": {"skip": ["mlp"]}}}, "per_layer_config skips"),
    ],
)
def test_what_is_not_described_is_refused(name: str, changes: dict[str, object], message: str) -> None:
    config = zoo.ZOO[name].config()
    for entry, value in changes.items():
        setattr(config, entry, value)
    with pytest.raises(UnsupportedModelError, match=message):
        family_of(config)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_case_of_the_zoo_is_a_described_family(name: str) -> None:
    config = zoo.ZOO[name].config()
    assert family_of(config) is FAMILIES[config.model_type]


def test_a_package_brings_a_family(tmp_path: Path) -> None:
    code = "import lpc\nFAMILY = lpc.Family(heads='lanes', meaningful=('twist',))\n"
    with installed(tmp_path, "twisted", "lpc.families", {"twisted-llama": "twisted:FAMILY"}, code) as run:
        script = "from passes.families import *; from types import SimpleNamespace as N; import sys; "
        script += "config = N(model_type='twisted-llama', to_dict=dict); print('twisted' in sys.modules, end=' '); "
        assert run(f"{script}print(family_of(config).heads)") == "False lanes"
