"""The best removal under a budget: against all subsets, with a bound that always holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import quadratic_budget
from pruning.quadratic import evaluate
from pruning.quadratic_budget import Demand, choose_within, exchange

seeds = st.integers(0, 10**6)


def problem(seed, *, additive):
    """Return S of a drawn rank, u and a demand on three groups of two to four channels."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 5, 3)
    channels = int(sizes.sum())
    slopes = rng.standard_normal((int(rng.integers(2, 2 * channels)), channels)) * rng.gamma(1, size=channels)
    slopes += rng.standard_normal(channels) / 2
    scale = 10.0 ** rng.integers(-6, 4)
    S = scale * slopes.T @ slopes / len(slopes)
    u = scale * rng.choice([0.0, 0.3, 3.0]) * rng.standard_normal(channels)
    a, b = rng.integers(1, 30, 3), rng.integers(1, 9, 3)

    def macs(widths):
        if additive:
            return widths @ a
        chained = widths[:, 0] * widths[:, 1] * b[0] + widths[:, 1] * widths[:, 2] * b[1]
        return chained + widths[:, 2] ** 2 * b[2] + widths[:, 0] * 5

    def saved(removed):
        return macs(sizes[None]) - macs(sizes - removed)

    most = sizes - rng.integers(0, 2, 3)
    return (S + S.T) / 2, u, Demand(sizes, most, saved, int(saved(most[None])[0] * rng.uniform(-0.2, 1)))


def every_set(demand):
    """Return each set that meets the demand, by counting it out."""
    owners = [group for group, size in enumerate(demand.sizes) for _ in range(size)]
    found = []
    for number in range(2 ** len(owners)):
        z = np.array([number >> channel & 1 for channel in range(len(owners))], dtype=bool)
        state = np.array([[sum(z[i] for i in range(len(z)) if owners[i] == group) for group in range(3)]])
        if (state <= demand.most).all() and demand.saved(state)[0] >= demand.need:
            found.append(z)
    return found


def size_of(S, u):
    return float(np.abs(S).sum() + np.abs(u).sum())


each_kind = pytest.mark.parametrize("additive", [True, False])


@each_kind
def test_the_result_meets_the_demand_lies_within_its_gap_and_is_mostly_the_best_of_all(additive):
    hits = []
    for seed in range(40):
        S, u, demand = problem(seed, additive=additive)
        sets = every_set(demand)
        best, rounding = min(evaluate(S, u, z) for z in sets), 1e-11 * size_of(S, u)
        choice = choose_within(S, u, demand)
        assert any((choice.chosen == z).all() for z in sets)
        assert choice.value == pytest.approx(evaluate(S, u, choice.chosen))
        assert choice.bound <= best + rounding
        assert choice.value - best <= choice.gap + rounding
        hits.append(choice.value <= best + rounding)
    assert np.mean(hits) >= 0.6


@each_kind
@pytest.mark.parametrize("iterations", [1, 5, 600])
def test_the_bound_holds_before_it_is_compared_with_a_set_and_if_the_relaxation_is_cut_short(
    additive, iterations, monkeypatch
):
    monkeypatch.setattr("pruning.quadratic.ITERATIONS", iterations)
    for seed in range(25):
        S, u, demand = problem(seed, additive=additive)
        best = min(evaluate(S, u, z) for z in every_set(demand))
        linear = quadratic_budget._tangent(demand, np.zeros(3, dtype=np.int64))
        _, bound = quadratic_budget._relax(S, u, linear, linear.nearest(np.full(len(u), 0.5)))
        assert bound <= best + 1e-11 * size_of(S, u)


@each_kind
def test_it_is_never_worse_than_a_set_that_it_is_given(additive):
    for seed in range(20):
        S, u, demand = problem(seed, additive=additive)
        sets = sorted(every_set(demand), key=lambda z: evaluate(S, u, z))
        assert choose_within(S, u, demand, sets[:1]).value <= evaluate(S, u, sets[0]) + 1e-11 * size_of(S, u)


@each_kind
@pytest.mark.parametrize("first", [1, 8])
def test_no_step_is_left_that_helps(additive, first, monkeypatch):
    monkeypatch.setattr(quadratic_budget, "FIRST", first)
    for seed in range(15):
        S, u, demand = problem(seed, additive=additive)
        sets = every_set(demand)
        start = sets[np.random.default_rng(seed).integers(len(sets))]
        end = exchange(S, u, demand, start)
        value, rounding = evaluate(S, u, end), 1e-9 * size_of(S, u)
        assert value <= evaluate(S, u, start) + rounding
        for z in sets:
            if (end & ~z).sum() <= 1 and (z & ~end).sum() <= 1:
                assert evaluate(S, u, z) >= value - rounding


@settings(max_examples=80, deadline=None, derandomize=True)
@given(seed=seeds)
def test_the_nearest_point_of_the_relaxation_satisfies_its_conditions(seed):
    _, _, demand = problem(seed, additive=True)
    rng = np.random.default_rng(seed)
    linear = quadratic_budget._tangent(demand, np.zeros(3, dtype=np.int64))
    y = rng.standard_normal(int(demand.sizes.sum())) * 10.0 ** rng.integers(-2, 3)
    z = linear.nearest(y)
    counts, saves = demand.count(z), float(linear.price[demand.owners] @ z)
    assert z.min() >= 0
    assert z.max() <= 1
    assert (counts <= demand.most + 1e-7).all()
    assert saves >= linear.need - 1e-7
    # no point of the set lies on the other side of the plane through z that y looks at
    for _ in range(20):
        other = linear.nearest(rng.standard_normal(len(y)) * 3)
        assert (y - z) @ (other - z) <= 1e-6 * (1 + np.abs(y).sum())


@settings(max_examples=80, deadline=None, derandomize=True)
@given(seed=seeds)
def test_the_least_slope_over_the_relaxation_is_that_of_a_linear_programme(seed):
    from scipy.optimize import linprog

    _, _, demand = problem(seed, additive=True)
    linear = quadratic_budget._tangent(demand, np.zeros(3, dtype=np.int64))
    slope = np.random.default_rng(seed).standard_normal(int(demand.sizes.sum()))
    of_groups = (demand.owners == np.arange(3)[:, None]).astype(float)
    rows, limits = np.vstack([-linear.price[demand.owners], of_groups]), [-linear.need, *demand.most]
    expected = linprog(slope, A_ub=rows, b_ub=limits, bounds=(0, 1)).fun
    assert linear.least(slope) == pytest.approx(expected, abs=1e-8)


def test_of_two_groups_that_say_the_same_one_is_cut():
    """Each group alone is cheap to lose half of; both lose it together only at a price that cross terms know."""
    slopes = np.random.default_rng(0).standard_normal((50, 4))
    slopes = np.concatenate([slopes, slopes], axis=1)  # channel i of the second group does what i of the first does
    S = slopes.T @ slopes / 50
    demand = Demand(np.array([4, 4]), np.array([3, 3]), lambda removed: removed.sum(axis=1), 4)
    choice = choose_within(S, np.zeros(8), demand)
    assert not (choice.chosen[:4] & choice.chosen[4:]).any()


def test_the_bound_meets_the_value_where_channels_are_independent_and_cost_the_same():
    diagonal = np.arange(1.0, 7.0)
    demand = Demand(np.array([3, 3]), np.array([2, 2]), lambda removed: removed.sum(axis=1) * 7, 21)
    choice = choose_within(np.diag(diagonal), np.zeros(6), demand)
    assert np.flatnonzero(choice.chosen).tolist() == [0, 1, 3]
    assert choice.value == pytest.approx((1 + 2 + 4) / 2)
