from __future__ import annotations

import contextlib

import pytest
import zoo
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from real_configs import REAL

from passes.errors import ModelError
from passes.stored import check_declared


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 10**9),
        ("hidden_size", 1e9),
        ("hidden_size", -(10**9)),
        ("num_hidden_layers", 10_000),
        ("n_layer", 5_000),
        ("intermediate_size", 10**8),
        ("vocab_size", 10**8),
        ("num_labels", 10**9),
        ("max_position_embeddings", 10**9),
        ("num_attention_heads", 10**6),
        ("image_size", 10**6),
        ("anything", 10**12),
        ("anything", 10**400),
    ],
)
def test_a_number_that_no_model_has_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ModelError, match=rf"FILE says {name} = .*correct the entry"):
        check_declared({"nested": [{name: value}]}, "FILE")


@pytest.mark.parametrize("name", REAL)
def test_real_configurations_pass(name: str) -> None:
    check_declared(REAL[name][1]().to_dict(), name)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_family_passes(name: str) -> None:
    check_declared(zoo.ZOO[name].config().to_dict(), name)


def test_windows_and_frequencies_may_be_large() -> None:
    check_declared({"rope_theta": 10**11, "sliding_window": 2**40, "max_length": 10**30 % 2**62}, "FILE")


def test_deep_nesting_is_refused() -> None:
    values: object = 1
    for _ in range(100):
        values = {"a": values}
    with pytest.raises(ModelError, match="nested"):
        check_declared(values, "FILE")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine it is
@given(JSON)
@example(float("nan"))
@example({"hidden_size": float("inf")})
@example({"": {"": [[-(10**400)]]}})
def test_any_json_passes_or_is_one_error(values: object) -> None:
    with contextlib.suppress(ModelError):
        check_declared(values, "FILE")
