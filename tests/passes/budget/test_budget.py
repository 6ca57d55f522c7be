from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.errors import OptionError
from passes.options import MEASURES, Budget, Workload

DENSE = {"parameters": 1e9, "macs": 2e9, "weight_bytes": 4e9, "kv_cache_bytes": 4096.0, "latency": 0.5}


def bound(**amounts: float | int | str) -> float:
    (limit,) = Budget(**amounts).limits(DENSE)
    return limit.bound


@pytest.mark.parametrize(
    ("amounts", "expected"),
    [
        ({"parameters": 0.5}, 5e8),
        ({"parameters": 300_000_000}, 3e8),
        ({"parameters": "0.3B"}, 3e8),
        ({"parameters": "300 M"}, 3e8),
        ({"macs": "1.5G"}, 1.5e9),
        ({"weight_bytes": "2GB"}, 2e9),
        ({"weight_bytes": "1GiB"}, 2**30),
        ({"kv_cache_bytes": "2KiB"}, 2048),
        ({"latency": "12ms"}, 0.012),
        ({"latency": "250us"}, 0.00025),
        ({"latency": 0.25}, 0.125),
    ],
)
def test_amounts_are_fractions_of_dense_or_absolute(amounts: dict[str, float | int | str], expected: float) -> None:
    assert bound(**amounts) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("amounts", "message"),
    [
        ({}, "at least one of parameters, macs"),
        ({"parameters": 0.0}, "strictly between 0 and 1"),
        ({"parameters": 1.0}, "strictly between 0 and 1"),
        ({"parameters": 2.5}, "whole number or a text"),
        ({"parameters": float("nan")}, "strictly between 0 and 1"),
        ({"parameters": -3}, "must be positive"),
        ({"parameters": "3.5X"}, r"'3\.5X' cannot be read"),
        ({"weight_bytes": "3ms"}, "cannot be read.*GB"),
        ({"latency": "12"}, "cannot be read.*12ms"),
        ({"latency": 12}, "latency=12 has no unit.*12ms.*fraction"),
        ({"latency": True}, "not an amount"),
        ({"parameters": 0.5, "runtime": "tensorrt"}, "unknown runtime 'tensorrt'.*onnxruntime-cpu"),
    ],
)
def test_impossible_amounts_are_refused_with_the_value_and_the_remedy(amounts: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Budget(**amounts)


def test_texts_become_a_budget_of_several_limits() -> None:
    budget = Budget.parse(["parameters=0.5", "latency=12ms", "kv_cache_bytes=2KiB"], at=Workload(batch=2))
    assert budget == Budget(parameters=0.5, latency="12ms", kv_cache_bytes="2KiB", at=Workload(batch=2))
    assert {limit.measure: limit.bound for limit in budget.limits(DENSE)} == pytest.approx(
        {"parameters": 5e8, "latency": 0.012, "kv_cache_bytes": 2048}
    )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["parameters"], "MEASURE=AMOUNT"),
        (["speed=0.5"], "one of parameters, macs"),
        (["macs=0.5", "macs=0.6"], "limits macs twice: 0.5 and 0.6"),
        (["parameters=1.5"], "strictly between 0 and 1; give absolute"),
    ],
)
def test_texts_that_are_no_budget_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Budget.parse(texts)


@given(measure=st.sampled_from(list(MEASURES)), fraction=st.floats(0.01, 0.99))
def test_a_fraction_as_text_is_the_same_as_the_fraction(measure: str, fraction: float) -> None:
    assert Budget.parse([f"{measure}={fraction!r}"]) == Budget(**{measure: fraction})


@given(ratio=st.floats(0.001, 0.999))
def test_removing_is_short_for_the_parameters_that_stay(ratio: float) -> None:
    assert Budget.removing(ratio) == Budget(parameters=1 - ratio)


@pytest.mark.parametrize(("text", "expected"), [("1x128+32", (1, 128, 32)), ("8x512+0", (8, 512, 0))])
def test_a_workload_reads_as_it_prints(text: str, expected: tuple[int, int, int]) -> None:
    workload = Workload.parse(text)
    assert (workload.batch, workload.prefill, workload.decode) == expected
    assert str(workload) == text


@pytest.mark.parametrize("text", ["128", "1x128", "0x128+1", "1x0+0", "ax1+1"])
def test_what_is_no_workload_is_refused(text: str) -> None:
    with pytest.raises(OptionError):
        Workload.parse(text)
