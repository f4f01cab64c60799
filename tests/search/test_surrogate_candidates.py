"""Where candidates come from, against all widths of a small network."""

from itertools import pairwise, product

import moocore
import numpy as np
import pytest
import tiny
import torch
from torch import nn

from pruning import CostModel, find_groups
from pruning.allocation.levels import choose_levels
from search.errors import SearchError
from search.surrogate import Ladder, Prior
from search.surrogate.evolution import Candidates, evolve, hashes
from search.surrogate.start import directions, least_harm

EXAMPLE = torch.zeros(1, 1, 8, 8)


@pytest.fixture(scope="module")
def ladder():
    """A stem of 8 channels and three blocks of 6: 1,728 networks."""
    network = tiny.Blocks(4, count=3)
    groups = find_groups(network, EXAMPLE)
    return Ladder.of(groups, CostModel(network, groups, EXAMPLE))


def every_state(ladder):
    return np.array([*product(*(range(len(rungs)) for rungs in ladder.rungs))])


def macs(ladder):
    return lambda widths: ladder.costs(widths)[0].astype(float)


def prior(ladder, seed=0):
    rng = np.random.default_rng(seed)
    harm = [np.append(np.cumsum(rng.exponential(size=full))[::-1], 0) for full in ladder.full]
    return Prior(dict(zip(ladder.names, harm, strict=True)))


# ── the ladder ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rungs_are_multiples_from_the_least_width_on_and_the_full_width():
    network = tiny.network(widths=(8, 15))
    groups = find_groups(network, EXAMPLE)
    ladder = Ladder.of(groups, CostModel(network, groups, EXAMPLE), {"first": 3}, round_to=4)
    assert [rungs.tolist() for rungs in ladder.rungs] == [[4, 8], [4, 8, 12, 15]]
    with pytest.raises(SearchError, match="round_to: expected at least 1, got 0"):
        Ladder.of(groups, CostModel(network, groups, EXAMPLE), round_to=0)


def test_costs_are_the_cost_models_and_other_groups_are_whole(ladder, monkeypatch):
    monkeypatch.setattr("search.surrogate.ladder.BATCH", 100)
    some = Ladder(ladder.names[1:3], ladder.rungs[1:3], ladder.cost)
    widths = some.widths(every_state(some))
    expected = [ladder.cost.cost(dict(zip(some.names, row, strict=True))) for row in widths.tolist()]
    counted, params = some.costs(widths)
    assert [*zip(counted, params, strict=True)] == [(cost.macs, cost.params) for cost in expected]
    assert [part.shape for part in some.costs(widths[:0])] == [(0,), (0,)]


def test_the_nearest_state_of_every_state_is_itself(ladder):
    states = every_state(ladder)
    assert (ladder.nearest(ladder.widths(states)) == states).all()
    assert ladder.nearest(np.array([[4.5, 0.0, 99.0, 3.51]])).tolist() == [[3, 0, 5, 3]]


# ── the first ones ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_directions_fit_their_budgets_and_nearly_spend_them(ladder):
    full = ladder.cost.full.macs
    budgets = np.linspace(0.3, 1, 200) * full
    states = directions(ladder, macs(ladder), budgets, np.random.default_rng(0))
    spent = macs(ladder)(ladder.widths(states))
    assert (spent <= budgets).all()
    assert np.median(spent / budgets) > 0.9
    assert len(np.unique(states, axis=0)) > 100
    assert len(np.unique(states[spent < 0.5 * full], axis=0)) > 30


def test_below_every_budget_the_narrowest_widths_remain(ladder):
    states = directions(ladder, macs(ladder), np.zeros(5), np.random.default_rng(0))
    assert (states == 0).all()


@pytest.fixture(scope="module")
def chain():
    """Six convolutions one behind the other: what a channel costs depends on the widths beside it."""
    sizes = [1, 24, 24, 32, 32, 48, 48]
    network = nn.Sequential(*(nn.Conv2d(*pair, 3, padding=1, bias=False) for pair in pairwise(sizes)))
    network.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten()).append(nn.Linear(48, 10))
    groups = find_groups(network, EXAMPLE)
    return Ladder.of(groups, CostModel(network, groups, EXAMPLE), round_to=4)


def exact(ladder, known, budgets):
    """Return the widths of least harm, by mixed-integer programs."""
    rungs = dict(zip(ladder.names, ladder.rungs, strict=True))
    harm = {name: known.harm[name][of_group] for name, of_group in rungs.items()}
    return ladder.matrix([choose_levels(rungs, harm, ladder.cost, int(budget)).widths for budget in budgets])


@pytest.mark.parametrize("seed", range(3))
def test_least_harm_comes_near_the_exact_one_and_breeding_reaches_it(chain, seed):
    budgets, known, cost = np.array([0.3, 0.5, 0.7]) * chain.cost.full.macs, prior(chain, seed), macs(chain)

    def score(states, labels):
        widths = chain.widths(states)
        return Candidates(states, labels, np.stack([known.of(chain.names, widths), cost(widths)], axis=1))

    states = least_harm(chain, cost, known, budgets)
    even = chain.full * np.sqrt(budgets / chain.cost.full.macs)[:, None]
    widths = chain.widths(states), exact(chain, known, budgets), even.astype(int)
    near, best, plain = (known.of(chain.names, of_some) for of_some in widths)
    assert (cost(chain.widths(states)) <= budgets).all()
    assert (best <= near).all()
    assert near.sum() < min(1.2 * best.sum(), 0.8 * plain.sum())
    bred = evolve(score, chain, 1, score(states, np.zeros(3, dtype=int)), 20_000, np.random.default_rng(0))
    reached = [bred.points[bred.points[:, 1] <= budget, 0].min() for budget in budgets]
    assert reached == pytest.approx(best, rel=0.02)


# ── those that are bred ──────────────────────────────────────────────────────────────────────────────────────────────


def landscape(ladder, objectives):
    """Return what a policy is worth, not additive: harm in logarithms, one criterion better where much is kept."""
    known = prior(ladder, seed=5)

    def score(states, labels):
        widths = ladder.widths(states)
        harm = known.of(ladder.names, widths)
        worse = np.log1p(harm) + 0.3 * np.abs(widths[:, 1] - widths[:, 2]) + labels * np.where(harm > 3, -0.2, 0.2)
        columns = [worse / 10, *(cost / full for cost, full in zip(ladder.costs(widths), vars_of(ladder), strict=True))]
        return Candidates(states, labels, np.stack(columns[:objectives], axis=1))

    return score


def vars_of(ladder):
    return ladder.cost.full.macs, ladder.cost.full.params


@pytest.mark.parametrize(("objectives", "part"), [(2, 0.9999), (3, 0.999)])
def test_the_bred_front_is_that_of_all_policies(ladder, objectives, part):
    score, states = landscape(ladder, objectives), every_state(ladder)
    every = score(np.tile(states, (2, 1)), np.repeat([0, 1], len(states)))
    rng = np.random.default_rng(0)
    first = score(rng.integers(ladder.top + 1, size=(50, len(ladder.top))), rng.integers(2, size=50))
    bred = evolve(score, ladder, 2, first, 20_000, rng)
    reached, best = (moocore.hypervolume(some.points, ref=1.0) for some in (bred, every))
    assert reached >= part * best > 1.02 * part * moocore.hypervolume(first.points, ref=1.0)
    assert len(np.unique(np.column_stack([bred.states, bred.labels]), axis=0)) == len(bred)


def test_of_nothing_nothing_is_bred(ladder):
    none = Candidates(every_state(ladder)[:0], np.zeros(0, dtype=int), np.zeros((0, 2)))
    assert len(evolve(landscape(ladder, 2), ladder, 2, none, 1000, np.random.default_rng(0))) == 0


def test_hashes_tell_all_policies_apart(ladder):
    states = np.tile(every_state(ladder), (2, 1))
    assert len(np.unique(hashes(states, np.repeat([0, 1], len(states) // 2)))) == len(states)
