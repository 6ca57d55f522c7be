"""Removal errors from Gram matrices, against least squares on the data themselves."""

from __future__ import annotations

import pytest
import torch

from passes.algebra import Surgery, damped_factor, elimination, elimination_errors

RIDGE = 1e-2


def problem(inputs: int, outputs: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Correlated data X [60, inputs], a weight [inputs, outputs] and units [n, width], scattered over the inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    data = torch.randn(60, inputs, generator=generator, dtype=torch.float64) @ mixing
    weight = torch.randn(inputs, outputs, generator=generator, dtype=torch.float64)
    return data, weight, torch.randperm(inputs, generator=generator).reshape(-1, width)


def surgery(data: torch.Tensor, weight: torch.Tensor, units: torch.Tensor) -> Surgery:
    gram = data.T @ data / len(data)
    return Surgery(torch.cholesky_inverse(damped_factor(gram, RIDGE))[None], weight[None].clone(), units)


def together(problems: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> Surgery:
    """The problems as one batch; they have the units of the first."""
    each = [surgery(data, weight, problems[0][2]) for data, weight, _ in problems]
    start = torch.arange(problems[0][1].shape[0])[:, None]  # as they lie in ``each``
    width = problems[0][2].shape[1]
    return Surgery(torch.cat([s.inverse for s in each]), torch.cat([s.weight for s in each]), start.reshape(-1, width))


NONE_GONE = torch.zeros(1, 12, dtype=torch.bool)


def left_by(data: torch.Tensor, weight: torch.Tensor, gone: list[int]) -> float:
    """The squared error a row of the best weight without some inputs, the ridge being rows of data of its own."""
    size = float(data.square().sum(0).mean()) / len(data)
    rows = torch.cat([data / len(data) ** 0.5, (RIDGE * size) ** 0.5 * torch.eye(data.shape[1], dtype=torch.float64)])
    kept = [j for j in range(data.shape[1]) if j not in gone]
    best = torch.linalg.lstsq(rows[:, kept], rows @ weight).solution
    return float((rows @ weight - rows[:, kept] @ best).square().sum())


def in_turn(problems: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The error of each unit at its turn, each candidate being tried by least squares from the start."""
    gone: list[int] = []
    so_far, scores = 0.0, torch.zeros(len(problems[0][2]), dtype=torch.float64)
    while len(gone) < len(scores):
        tried = {
            unit: sum(
                left_by(data, weight, units[[*gone, unit]].flatten().tolist()) for data, weight, units in problems
            )
            for unit in range(len(scores))
            if unit not in gone
        }
        unit = min(tried, key=lambda each: tried[each])
        scores[unit] = max(tried[unit] - so_far, float(scores.max()))
        so_far = tried[unit]
        gone.append(unit)
    return scores


@pytest.mark.parametrize("width", [1, 3])
def test_the_error_of_a_unit_is_what_least_squares_leaves_without_it(width: int) -> None:
    data, weight, units = problem(12, 5, width)
    found = surgery(data, weight, units).errors(NONE_GONE[:, : len(units)])[0]
    for unit, error in enumerate(found.tolist()):
        assert error == pytest.approx(left_by(data, weight, units[unit].tolist()), rel=1e-8)


@pytest.mark.parametrize("width", [1, 2])
def test_what_is_left_is_the_solution_of_least_squares(width: int) -> None:
    data, weight, units = problem(8, 3, width)
    under = surgery(data, weight, units)
    for gone in ([0, 2], [1]):
        under.remove(torch.tensor([gone]))
    kept = units[3:].flatten()  # inside, the inputs are in the order of the units
    gram = data.T @ data / len(data)
    gram = gram + RIDGE * gram.diagonal().mean() * torch.eye(8)
    expected = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ weight)
    left = 3 * width
    assert torch.allclose(under.weight[0, left:], expected, rtol=1e-8)
    assert torch.allclose(under.inverse[0, left:, left:], torch.linalg.inv(gram[kept][:, kept]), rtol=1e-8)
    assert under.weight[0, :left].abs().max() < 1e-10


@pytest.mark.parametrize(("width", "seed"), [(1, 0), (1, 1), (2, 0), (3, 5)])
def test_units_go_in_turn_by_the_error_that_is_left(width: int, seed: int) -> None:
    shared = problem(12, 5, width, seed)
    problems = [shared, (*problem(12, 4, width, seed + 50)[:2], shared[2])]
    found = elimination_errors([surgery(*each) for each in problems])[0]
    expected = in_turn(problems)
    assert torch.allclose(found, expected, rtol=1e-4)
    assert len(found.unique()) == len(found)


@pytest.mark.parametrize("compacted", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("width", "pool"), [(1, 1), (1, 7), (2, 1), (2, 7)])
def test_when_the_matrices_are_cut_down_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, width: int, pool: int, compacted: float
) -> None:
    monkeypatch.setattr(elimination, "ALONE", 0)
    monkeypatch.setattr(elimination, "POOL", pool)  # the rest one by one: a pool of fewer than 8 inputs gives one unit
    monkeypatch.setattr(elimination, "COMPACTED", compacted)
    shared = problem(12, 5, width)
    assert torch.allclose(elimination_errors([surgery(*shared)])[0], in_turn([shared]), rtol=1e-4)


def test_of_two_equal_inputs_the_first_to_go_is_cheap_and_the_second_dear() -> None:
    data, weight, _ = problem(6, 4, 1)
    data[:, 1] = data[:, 0]
    twins = elimination_errors([surgery(data, weight, torch.arange(6)[:, None])])[0, :2].sort().values
    assert twins[0] < 0.05 * twins[1]


@pytest.mark.parametrize("width", [1, 2])
def test_dimensions_of_one_shape_are_ranked_together_as_each_is_alone(width: int) -> None:
    units = problem(12, 5, width)[2]
    problems = [(*problem(12, 5, width, seed)[:2], units) for seed in range(3)]
    found = elimination_errors([together(problems)])
    for number, each in enumerate(problems):
        assert torch.allclose(found[number], in_turn([each]), rtol=1e-4)


def test_inputs_that_no_unit_owns_stay() -> None:
    data, weight, units = problem(12, 5, 2)
    some = units[:4]
    found = elimination_errors([surgery(data, weight, some)])
    assert torch.allclose(found[0], in_turn([(data, weight, some)]), rtol=1e-4)


@pytest.mark.parametrize(("width", "seed"), [(1, 0), (1, 3), (2, 1), (3, 0)])
def test_in_a_pool_of_all_units_go_in_turn_as_from_the_large_matrices(
    monkeypatch: pytest.MonkeyPatch, width: int, seed: int
) -> None:
    shared = problem(12, 5, width, seed)
    problems = [shared, (*problem(12, 4, width, seed + 50)[:2], shared[2])]
    expected = elimination_errors([surgery(*each) for each in problems])
    monkeypatch.setattr(elimination, "ALONE", 0)
    monkeypatch.setattr(elimination, "POOL", 1)
    assert torch.allclose(elimination_errors([surgery(*each) for each in problems]), expected, rtol=1e-8)


@pytest.mark.parametrize("width", [1, 2])
def test_a_pool_loses_little_against_all_in_turn(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    data, weight, units = problem(48, 6, width)
    exact = elimination_errors([surgery(data, weight, units)])[0]
    monkeypatch.setattr(elimination, "ALONE", 0)
    monkeypatch.setattr(elimination, "POOL", 12 * width)
    pooled = elimination_errors([surgery(data, weight, units)])[0]
    for count in (len(units) // 4, len(units) // 2):
        gone = units[pooled.argsort()[:count]].flatten().tolist()
        least = left_by(data, weight, units[exact.argsort()[:count]].flatten().tolist())
        assert left_by(data, weight, gone) <= 1.05 * least


def test_of_a_pool_the_first_is_the_least_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "ALONE", 0)
    monkeypatch.setattr(elimination, "POOL", 8)
    data, weight, units = problem(24, 4, 1)
    alone = surgery(data, weight, units).errors(torch.zeros(1, 24, dtype=torch.bool))[0]
    found = elimination_errors([surgery(data, weight, units)])[0]
    assert int(found.argmin()) == int(alone.argmin())
    assert float(found.min()) == pytest.approx(float(alone.min()), rel=1e-9)
    assert set(found.argsort()[:2].tolist()) <= set(alone.argsort()[:8].tolist())


def test_the_ridge_grows_until_there_is_a_factor() -> None:
    assert damped_factor(torch.zeros(3, 3, dtype=torch.float64), 0.0).diagonal().min() > 0
    ones = torch.ones(3, 3, dtype=torch.float64)
    factor = damped_factor(ones, 0.0)
    assert torch.allclose(factor @ factor.T, ones, atol=1e-5)


def test_the_ridge_grows_only_where_it_must() -> None:
    both = torch.stack([torch.eye(3, dtype=torch.float64), torch.ones(3, 3, dtype=torch.float64)])
    factors = damped_factor(both, 0.0)
    assert torch.equal(factors[0], both[0])
    assert torch.allclose(factors[1] @ factors[1].T, both[1], atol=1e-5)
    assert factors[1].diagonal().min() > 0
