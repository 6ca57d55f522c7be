from __future__ import annotations

import itertools
import re
from fractions import Fraction
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, PreTrainedConfig
from workbench import build_model, shapes_by_hand

from passes.errors import OptionError, UnreachableRatioError
from passes.graph import PruningGraph
from passes.target import Target, default_multiple, reachable_channels, uniform_widths
from passes.trace import trace

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
    """All reachable models written out; the group count nearest to an equal share, then the largest model."""
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
    return max((choice for choice in fitting if choice[0] == groups), key=lambda choice: sizes[choice])


@settings(max_examples=150, deadline=None)
@given(index=st.sampled_from(VARIANTS), ratio=st.floats(0.001, 0.999), multiple=st.sampled_from([None, 1, 8, 24, 999]))
def test_widths_equal_those_found_by_enumeration(index: int, ratio: float, multiple: int | None) -> None:
    config, graph = variant(index)
    expected = by_enumeration(index, ratio, multiple or (64 if config.intermediate_size >= 1024 else 8))
    if expected is None:
        with pytest.raises(UnreachableRatioError):
            uniform_widths(graph, ratio, multiple)
    else:
        found = uniform_widths(graph, ratio, multiple)
        assert (found.groups, found.channels) == expected


@pytest.mark.parametrize("index", VARIANTS)
def test_a_size_that_meets_the_ratio_exactly_is_taken(index: int) -> None:
    """The share that a result removes is asked for: no smaller model may come out, for all the rounding of floats."""
    config, graph = variant(index)
    dense = graph.parameters()
    for groups in range(1, config.num_key_value_heads + 1):
        for channels in range(8, min(config.intermediate_size, 400), 8):
            size = graph.parameters(graph.uniform(groups, channels))
            found = uniform_widths(graph, 1 - size / dense, 8)
            if found.groups == groups:
                assert found.channels == channels


def test_halfway_between_two_group_counts_the_smaller_model_is_taken() -> None:
    config, graph = variant(0)
    dense, bare = graph.parameters(), shapes_by_hand(config, 0, 0)
    found = uniform_widths(graph, 0.375 * (dense - bare) / dense, 1)
    assert found.groups == 2


@pytest.mark.parametrize("index", VARIANTS)
@pytest.mark.parametrize("multiple", [None, 1, 16, 999])
def test_the_stated_largest_ratio_is_reachable_and_the_largest(index: int, multiple: int | None) -> None:
    _config, graph = variant(index)
    with pytest.raises(UnreachableRatioError) as caught:
        uniform_widths(graph, 0.9999, multiple)
    stated = float(re.search(r"largest reachable ratio is ([0-9.]+)", str(caught.value))[1])
    found = uniform_widths(graph, stated, multiple)
    assert (found.groups, found.channels) == (1, reachable_channels(graph, multiple or default_multiple(graph))[0])
    with pytest.raises(UnreachableRatioError):
        uniform_widths(graph, stated + 1e-4, multiple)


def test_the_error_of_large_embeddings_names_the_ratio_and_the_cause() -> None:
    with pytest.raises(UnreachableRatioError, match=r"ratio 0\.5 is out of reach.*embeddings.*largest reachable ratio"):
        uniform_widths(variant(2)[1], 0.5)


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, float("nan"), float("inf")])
def test_a_ratio_outside_zero_and_one_is_refused(ratio: float) -> None:
    with pytest.raises(OptionError, match="strictly between 0 and 1"):
        Target(ratio=ratio)


@pytest.mark.parametrize("multiple", [0, -8])
def test_an_impossible_multiple_is_refused(multiple: int) -> None:
    with pytest.raises(OptionError, match=str(multiple)):
        Target(ratio=0.3, multiple=multiple)


@pytest.mark.parametrize(("channels", "multiple"), [(64, 8), (1023, 8), (1024, 64), (14336, 64)])
def test_the_default_multiple_depends_on_the_width(channels: int, multiple: int) -> None:
    config = build_model("llama").config
    graph = trace(LlamaConfig(**{**config.to_dict(), "intermediate_size": channels}))
    assert default_multiple(graph) == multiple
    assert uniform_widths(graph, 0.3).channels % multiple == 0


@settings(max_examples=50, deadline=None)
@given(ratio=st.floats(0.01, 0.59))
def test_group_counts_that_no_stock_class_loads_are_never_chosen(ratio: float) -> None:
    graph = _biased()
    assert graph.group_counts == (1, 2, 4)
    assert uniform_widths(graph, ratio).groups in graph.group_counts


@lru_cache
def _biased() -> PruningGraph:
    return trace(build_model("llama", attention_bias=True).config)
