"""The best set of a given size under a quadratic loss: against all sets, with a bound that always holds."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import quadratic
from pruning.quadratic import choose, evaluate, project, relax, smallest, swap_pairs

seeds = st.integers(0, 10**6)


def problem(seed: int, channels: int | None = None):
    """Return S of a drawn rank, u and a count; scales as different as a network's."""
    rng = np.random.default_rng(seed)
    channels = channels or int(rng.integers(2, 13))
    slopes = rng.standard_normal((int(rng.integers(1, 2 * channels + 1)), channels)) + rng.standard_normal(channels)
    scale = 10.0 ** rng.integers(-6, 4)
    S = scale * slopes.T @ slopes / len(slopes)
    return (S + S.T) / 2, scale * rng.choice([0.0, 0.3, 3.0]) * rng.standard_normal(channels), rng


def every_value(S, u, count):
    return [sum_of(S, u, some) for some in combinations(range(len(u)), count)]


def sum_of(S, u, some):
    """Return the value of a set by its definition."""
    return sum(S[i, j] for i in some for j in some) / 2 - sum(u[i] for i in some)


def size_of(S, u):
    return float(np.abs(S).sum() + np.abs(u).sum())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=seeds)
def test_the_bound_holds_for_every_set_and_the_value_is_that_of_the_set(seed):
    S, u, rng = problem(seed, int(np.random.default_rng(seed).integers(2, 10)))
    count = int(rng.integers(0, len(u) + 1))
    choice, rounding = choose(S, u, count), 1e-12 * size_of(S, u)
    assert choice.chosen.dtype == bool
    assert choice.chosen.sum() == count
    assert choice.value == pytest.approx(sum_of(S, u, np.flatnonzero(choice.chosen)), abs=rounding)
    assert choice.bound <= min(every_value(S, u, count)) + rounding
    assert choice.gap == choice.value - choice.bound >= 0


def test_the_best_of_all_sets_is_mostly_found():
    hits = []
    for seed in range(60):
        S, u, rng = problem(seed, 10)
        count = int(rng.integers(1, 10))
        hits.append(choose(S, u, count).value <= min(every_value(S, u, count)) + 1e-12 * size_of(S, u))
    assert np.mean(hits) >= 0.9


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=seeds, channels=st.integers(2, 60))
def test_it_is_never_worse_than_the_channels_that_are_best_one_by_one(seed, channels):
    S, u, rng = problem(seed, channels)
    count = int(rng.integers(1, channels + 1))
    alone = np.argsort(np.diagonal(S) / 2 - u)[:count]
    assert choose(S, u, count).value <= sum_of(S, u, alone) + 1e-12 * size_of(S, u)


def test_nor_is_it_where_the_relaxation_misleads_and_no_pair_helps(monkeypatch):
    S, u, _ = problem(7, 20)
    alone = np.diagonal(S) / 2 - u
    monkeypatch.setattr(quadratic, "relax", lambda S, u, count: (alone, -np.inf))  # the worst channels
    monkeypatch.setattr(quadratic, "swap_pairs", lambda S, u, chosen: chosen)
    choice = choose(S, u, 7)
    assert sorted(np.flatnonzero(choice.chosen)) == sorted(np.argsort(alone)[:7])
    assert choice.value == pytest.approx(sum_of(S, u, np.argsort(alone)[:7]))


@pytest.mark.parametrize("promising", [1, 2, 128])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=seeds)
def test_no_pair_is_left_whose_exchange_helps(promising, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quadratic, "PROMISING", promising)
        check_that_no_pair_is_left(seed)


def check_that_no_pair_is_left(seed):
    S, u, rng = problem(seed)
    start = smallest(rng.standard_normal(len(u)), int(rng.integers(1, len(u))))
    end = swap_pairs(S, u, start)
    value, rounding = evaluate(S, u, end), 1e-10 * size_of(S, u)
    assert end.sum() == start.sum()
    assert value <= evaluate(S, u, start) + rounding
    for p in np.flatnonzero(end):
        for q in np.flatnonzero(~end):
            other = end.copy()
            other[p], other[q] = False, True
            assert evaluate(S, u, other) >= value - rounding


@pytest.mark.parametrize("channels", [12, 80])
def test_the_relaxation_lies_on_its_bound_when_it_has_converged(channels, monkeypatch):
    monkeypatch.setattr(quadratic, "ITERATIONS", 20_000)
    monkeypatch.setattr(quadratic, "RELATIVE_GAP", 1e-7)
    for seed in range(5):
        S, u, _ = problem(seed, channels)
        z, bound = relax(S, u, channels // 3)
        assert z.min() >= 0
        assert z.max() <= 1
        assert z.sum() == pytest.approx(channels // 3)
        assert evaluate(S, u, z) - bound <= 1e-6 * (z @ S @ z + np.abs(u) @ z)


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_the_bound_holds_also_if_the_relaxation_is_cut_short(iterations, monkeypatch):
    monkeypatch.setattr(quadratic, "ITERATIONS", iterations)
    for seed in range(30):
        S, u, _ = problem(seed, 9)
        assert relax(S, u, 4)[1] <= min(every_value(S, u, 4)) + 1e-12 * size_of(S, u)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(y=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20), share=st.floats(0, 1))
def test_the_projection_is_the_nearest_point_that_sums_to_the_total(y, share):
    y, total = np.array(y), round(share * len(y))
    z = project(y, total)
    assert z.min() >= 0
    assert z.max() <= 1
    assert z.sum() == pytest.approx(total, abs=1e-9)
    shift = y - z  # one number where z is free, at most it where z is 0, at least it where z is 1
    low = max((shift[i] for i in range(len(y)) if z[i] < 1), default=-np.inf)
    high = min((shift[i] for i in range(len(y)) if z[i] > 0), default=np.inf)
    assert low <= high + 1e-8


def test_a_diagonal_loss_takes_the_channels_that_are_best_one_by_one_and_proves_it():
    u, diagonal = np.array([0.3, -1.0, 0.2, 0.0, 2.0]), np.array([1.0, 0.0, 0.1, 0.2, 9.0])
    choice = choose(np.diag(diagonal), u, 2)
    assert np.flatnonzero(choice.chosen).tolist() == [2, 3]
    for count in range(6):
        assert choose(np.zeros((5, 5)), u, count).gap == pytest.approx(0, abs=1e-12)


def test_of_equal_channels_the_last_are_chosen():
    for count in range(7):
        choice = choose(np.zeros((6, 6)), np.zeros(6), count)
        assert choice.chosen.tolist() == [False] * (6 - count) + [True] * count
        assert choice.gap == 0


def test_channels_that_cancel_are_chosen_together():
    slopes = np.array([[1.0, -1.0, 0.9, 0.9]])  # 0 and 1 hurt most alone, not at all together
    S = slopes.T @ slopes
    assert smallest(np.diagonal(S) / 2, 2).tolist() == [False, False, True, True]
    assert choose(S, np.zeros(4), 2).chosen.tolist() == [True, True, False, False]


def test_the_unit_of_the_loss_does_not_matter():
    S, u, _ = problem(3, 30)
    first = choose(S, u, 12)
    for scale in (2.0**-40, 2.0**30):
        other = choose(scale * S, scale * u, 12)
        assert other.chosen.tolist() == first.chosen.tolist()
        assert other.gap == pytest.approx(scale * first.gap)
