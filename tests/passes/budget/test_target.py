from __future__ import annotations

import itertools
import re
from fractions import Fraction
from functools import lru_cache

import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, PreTrainedConfig
from workbench import build_model, shapes_by_hand

from passes.budget import Solver, default_multiple, largest_ratio, reachable_counts
from passes.budget.uniform import UniformAllocation
from passes.errors import OptionError, UnreachableBudgetError, UnsupportedModelError
from passes.graph import PruningGraph
from passes.options import Budget, Target, TraceOptions
from passes.trace import trace


def uniform_counts(graph: PruningGraph, ratio: float, multiple: int | None = None) -> dict[str, int]:
    return Solver.of(Target(ratio=ratio, multiple=multiple), graph).uniform_counts


CHANGES = [
    {},
    {"tie_word_embeddings": False, "num_hidden_layers": 3},
    {"vocab_size": 4000},
    {"intermediate_size": 100, "num_attention_heads": 16, "num_key_value_heads": 2},
    {"vocab_size": 300, "intermediate_size": 1088},
]
VARIANTS = range(len(CHANGES))


@lru_cache
def variant(index: int) -> tuple[PreTrainedConfig, PruningGraph]:
    config = build_model("llama", **CHANGES[index]).config
    return config, trace(config)


@lru_cache
def reachable_sizes(index: int, multiple: int) -> dict[tuple[int, int], int]:
    config, _ = variant(index)
    widths = [c for c in range(1, config.intermediate_size + 1) if c % multiple == 0 or c == config.intermediate_size]
    groups = range(1, config.num_key_value_heads + 1)
    return {choice: shapes_by_hand(config, *choice) for choice in itertools.product(groups, widths)}


def by_enumeration(index: int, ratio: float, multiple: int) -> tuple[int, int] | None:
    """All reachable models written out; the groups nearest to an equal share, the widest MLPs, then more groups."""
    config, _ = variant(index)
    sizes = reachable_sizes(index, multiple)
    dense = shapes_by_hand(config, config.num_key_value_heads, config.intermediate_size)
    bare = shapes_by_hand(config, 0, 0)
    limit = (1 - Fraction(ratio)) * dense + Fraction(1, 1000)
    fitting = {choice: size for choice, size in sizes.items() if size <= limit}
    if not fitting:
        return None
    equal = config.num_key_value_heads * (1 - Fraction(ratio) * dense / (dense - bare))
    groups = min({g for g, _ in fitting}, key=lambda g: (abs(g - equal), g))
    channels = max(c for g, c in fitting if g == groups)
    return max(g for g, c in fitting if g >= groups and c == channels), channels


def pair(counts: dict[str, int]) -> tuple[int, int]:
    assert counts.keys() == {"kv_groups", "mlp_channels"}
    return counts["kv_groups"], counts["mlp_channels"]


@settings(max_examples=150, deadline=None)
@given(index=st.sampled_from(VARIANTS), ratio=st.floats(0.001, 0.999), multiple=st.sampled_from([None, 1, 8, 24, 999]))
def test_counts_equal_those_found_by_enumeration(index: int, ratio: float, multiple: int | None) -> None:
    config, graph = variant(index)
    expected = by_enumeration(index, ratio, multiple or (64 if config.intermediate_size >= 1024 else 8))
    if expected is None:
        with pytest.raises(UnreachableBudgetError):
            uniform_counts(graph, ratio, multiple)
    else:
        assert pair(uniform_counts(graph, ratio, multiple)) == expected


@pytest.mark.parametrize("index", VARIANTS)
def test_a_size_that_meets_the_ratio_exactly_is_taken(index: int) -> None:
    """The share that a result removes is asked for: no smaller model may come out, for all the rounding of floats."""
    config, graph = variant(index)
    dense = graph.parameters()
    for groups in range(1, config.num_key_value_heads + 1):
        for channels in range(8, min(config.intermediate_size, 400), 8):
            size = graph.parameters(graph.uniform({"kv_groups": groups, "mlp_channels": channels}))
            found = pair(uniform_counts(graph, 1 - size / dense, 8))
            if found[0] == groups:
                assert found[1] == channels


def test_halfway_between_two_group_counts_the_smaller_model_is_taken() -> None:
    config, graph = variant(0)
    dense, bare = graph.parameters(), shapes_by_hand(config, 0, 0)
    found = uniform_counts(graph, 0.375 * (dense - bare) / dense, 1)
    assert found["kv_groups"] == 2


@pytest.mark.parametrize("index", VARIANTS)
@pytest.mark.parametrize("multiple", [None, 1, 16, 999])
def test_the_stated_largest_ratio_is_reachable_and_the_largest(index: int, multiple: int | None) -> None:
    _config, graph = variant(index)
    with pytest.raises(UnreachableBudgetError) as caught:
        uniform_counts(graph, 0.9999, multiple)
    stated = float(re.search(r"largest reachable ratio is ([0-9.]+)", str(caught.value))[1])
    assert stated == largest_ratio(graph, multiple)
    found = pair(uniform_counts(graph, stated, multiple))
    assert found == (1, reachable_counts(graph.width("mlp_channels"), multiple)[0])
    with pytest.raises(UnreachableBudgetError):
        uniform_counts(graph, stated + 1e-4, multiple)


def test_the_error_of_large_embeddings_names_the_ratio_and_the_sizes() -> None:
    message = r"ratio 0\.5 is out of reach: with 1 kv_groups and 8 mlp_channels .* of .* parameters remain"
    with pytest.raises(UnreachableBudgetError, match=message):
        uniform_counts(variant(2)[1], 0.5)


def test_the_error_says_what_code_in_the_checkpoint_would_let_go() -> None:
    case = zoo.ZOO["bert"]
    graph = trace(case.config(), model_type=case.model_class)
    with pytest.raises(UnreachableBudgetError, match=r"kv_groups cannot go: .*; --custom-code .* lets kv_groups go"):
        uniform_counts(graph, 0.9)


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, float("nan"), float("inf")])
def test_a_ratio_outside_zero_and_one_is_refused(ratio: float) -> None:
    with pytest.raises(OptionError, match=r"must be (a finite number|above 0 and below 1)"):
        Target(ratio=ratio)


@pytest.mark.parametrize("multiple", [0, -8])
def test_an_impossible_multiple_is_refused(multiple: int) -> None:
    with pytest.raises(OptionError, match=str(multiple)):
        Target(ratio=0.3, multiple=multiple)


@pytest.mark.parametrize(("channels", "multiple"), [(64, 8), (1023, 8), (1024, 64), (14336, 64)])
def test_the_default_multiple_depends_on_the_width(channels: int, multiple: int) -> None:
    config = build_model("llama").config
    graph = trace(LlamaConfig(**{**config.to_dict(), "intermediate_size": channels}))
    assert default_multiple(channels) == multiple
    assert uniform_counts(graph, 0.3)["mlp_channels"] % multiple == 0


@settings(max_examples=50, deadline=None)
@given(ratio=st.floats(0.01, 0.59))
def test_group_counts_that_no_stock_class_loads_are_never_chosen(ratio: float) -> None:
    graph = _biased()
    assert graph.width("kv_groups").counts == (1, 2, 4)
    assert uniform_counts(graph, ratio)["kv_groups"] in (1, 2, 4)


@lru_cache
def _biased() -> PruningGraph:
    return trace(build_model("llama", attention_bias=True).config)


@lru_cache
def graph_of(name: str, *, custom_code: bool = False) -> PruningGraph:
    case = zoo.ZOO[name]
    return trace(case.config(), model_type=case.model_class, options=TraceOptions(custom_code=custom_code))


def sizes_of(graph: PruningGraph, multiple: int) -> dict[tuple[int, ...], int]:
    """The parameter count of every reachable model."""
    choices = [reachable_counts(width, multiple) for width in graph.widths]
    names = [width.name for width in graph.widths]
    found = itertools.product(*choices)
    return {choice: graph.parameters(graph.uniform(dict(zip(names, choice, strict=True)))) for choice in found}


SEVERAL = ["mixtral", "qwen3_moe-mixed", "gpt2", "bart"]


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("custom_code", [False, True])
def test_models_of_any_widths_meet_the_ratio_and_waste_less_than_one_step(name: str, custom_code: bool) -> None:
    """Whatever the widths: the ratio is met, and no fine width could be one step wider."""
    graph = graph_of(name, custom_code=custom_code)
    dense, top = graph.parameters(), largest_ratio(graph, 8)
    for ratio in (top * share for share in (0.05, 0.3, 0.5, 0.8, 1.0)):
        counts = uniform_counts(graph, ratio, 8)
        assert all(counts[width.name] in width.counts for width in graph.widths)
        size = graph.parameters(graph.uniform(counts))
        assert size <= (1 - ratio) * dense + 1e-3
        for width in graph.widths:
            wider = [c for c in reachable_counts(width, 8) if c > counts[width.name]]
            if width.kind.is_fine and wider:
                larger = graph.parameters(graph.uniform({**counts, width.name: wider[0]}))
                assert larger > (1 - ratio) * dense


@pytest.mark.parametrize("name", SEVERAL)
def test_the_largest_ratio_is_that_of_the_smallest_model(name: str) -> None:
    graph = graph_of(name)
    smallest = min(sizes_of(graph, 8).values())
    assert largest_ratio(graph, 8) == pytest.approx(1 - smallest / graph.parameters(), abs=1e-4)
    assert largest_ratio(graph, 8) <= 1 - smallest / graph.parameters()


def test_heads_experts_and_their_channels_all_give_something() -> None:
    graph = graph_of("mixtral")
    bare = graph.parameters({d.name: 0 for d in graph.dimensions})
    counts = uniform_counts(graph, 0.5 * (1 - bare / graph.parameters()), 8)
    assert all(counts[width.name] < width.size for width in graph.widths)


def test_widths_that_cannot_change_stay_and_the_error_says_why() -> None:
    graph = graph_of("gpt2")
    assert uniform_counts(graph, 0.1)["kv_groups"] == 8
    with pytest.raises(
        UnreachableBudgetError, match=r"kv_groups cannot go: the stock class derives the size of a head"
    ):
        uniform_counts(graph, 0.9)


def test_a_model_of_which_nothing_can_go_is_refused_with_the_reasons() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"nothing of this bloom model .*kv_groups: .*mlp_channels: no entry"
    ):
        uniform_counts(graph_of("bloom"), 0.1)


def test_seq2seq_stacks_lose_the_same_share_of_their_channels() -> None:
    counts = uniform_counts(graph_of("bart"), 0.15, 1)
    both = counts["encoder.mlp_channels"], counts["decoder.mlp_channels"]
    assert max(both) < 64
    assert abs(both[0] - both[1]) <= 2


@pytest.mark.parametrize("removed", [0.1, 0.4, 0.7])
def test_experts_and_their_channels_share_what_their_parameters_must_give(removed: float) -> None:
    """With s found, removing the share s of experts and of the channels in those that stay leaves what was asked."""
    graph = trace(zoo.build("mixtral").config, model_type=type(zoo.build("mixtral")))
    prunable = 4 * 2 * (3 * 32 * 64) + 4 * 2 * 32 + 2 * 4 * (8 * 32 * (2 * 2 + 2))  # experts, routers, heads
    solver = Solver.of(Target(budget=Budget(parameters=round(graph.parameters() - removed * prunable))), graph)
    share = UniformAllocation(solver.bundles, solver.meter, solver.limits).common_share()
    experts = 4 * 2 * (3 * 32 * 64) * (1 - (1 - share) ** 2)
    others = (4 * 2 * 32 + 2 * 4 * (8 * 32 * (2 * 2 + 2))) * share
    assert experts + others == pytest.approx(removed * prunable, rel=1e-4)
