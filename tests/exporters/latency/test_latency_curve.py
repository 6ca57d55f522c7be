from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.latency.curve import Curve, isotonic
from passes.errors import DataError

TIMES = st.lists(st.floats(0, 10), min_size=1, max_size=8)


def test_a_curve_is_linear_between_its_points_and_flat_beyond_the_last() -> None:
    curve = Curve((2, 4, 8), (3.0, 4.0, 12.0))
    counts = [2, 3, 4, 5, 6, 8, 9]
    expected = np.interp(counts, (2, 4, 8), (3.0, 4.0, 12.0))
    assert [curve(count) for count in counts] == pytest.approx(expected.tolist())


def test_a_curve_goes_on_below_its_first_point_and_is_zero_only_without_units() -> None:
    curve = Curve((2, 4), (3.0, 4.0))
    assert curve(1) == pytest.approx(2.5)
    assert curve(0) == 0
    assert Curve((10, 11), (1.0, 9.0))(5) == 0
    assert Curve((8,), (2.0,))(3) == 2.0


@given(TIMES)
def test_isotonic_never_falls_and_keeps_what_rises(values: list[float]) -> None:
    found = isotonic(values)
    assert all(left <= right + 1e-9 for left, right in pairwise(found))
    assert isotonic(sorted(values)) == sorted(values)
    assert sum(found) == pytest.approx(sum(values), abs=1e-6)


@given(st.lists(st.floats(0, 10), min_size=2, max_size=5), st.integers(0, 10_000))
def test_isotonic_is_nearest_of_all_that_never_fall(values: list[float], seed: int) -> None:
    def distance(other: list[float]) -> float:
        return float(sum((a - b) ** 2 for a, b in zip(other, values, strict=True)))

    rising = sorted(np.random.default_rng(seed).uniform(0, 10, len(values)).tolist())
    assert distance(isotonic(values)) <= distance(rising) + 1e-9


@given(st.dictionaries(st.integers(1, 50), st.floats(-1, 10), min_size=1, max_size=6), st.integers(1, 60))
def test_a_fitted_curve_never_takes_longer_for_fewer_units(measured: dict[int, float], count: int) -> None:
    curve = Curve.fitted(measured)
    assert 0 <= curve(count - 1) <= curve(count) + 1e-12


@pytest.mark.parametrize(
    ("counts", "seconds"),
    [((), ()), ((1, 2), (1.0,)), ((2, 1), (1.0, 2.0)), ((1, 2), (2.0, 1.0)), ((0,), (1.0,)), ((1,), (float("nan"),))],
)
def test_points_that_are_no_curve_are_refused(counts: tuple[int, ...], seconds: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="curve"):
        Curve(counts, seconds)
