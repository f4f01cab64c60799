"""The widths of one penalty for all groups, against paths that are looked up one penalty at a time."""

import numpy as np
import pytest
import torch
from torch import nn

from pruning.allocation import ALLOCATIONS
from pruning.cost import CostModel
from pruning.criteria import CRITERIA
from pruning.errors import OptionError, PolicyError, RankingError
from pruning.finding import find_groups
from pruning.path_ranking import PathRanking
from pruning.policy import CriterionSpec
from pruning.ranking import NestedRanking

IMAGE = torch.zeros(1, 3, 8, 8)
ONE = 2 * 6 * 9 * 64
"""MACs of one channel, the same in every group: the filter that makes it and the slice that reads it."""


class Blocks(nn.Module):
    """Inner groups between convolutions that stay: costs add up."""

    def __init__(self, *inner):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.enter = nn.ModuleList(nn.Conv2d(6, width, 3, padding=1) for width in inner)
        self.leave = nn.ModuleList(nn.Conv2d(width, 6, 3, padding=1) for width in inner)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for enter, leave in zip(self.enter, self.leave, strict=True):
            x = torch.relu(x + leave(torch.relu(enter(x))))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def problem():
    model = Blocks(20, 30, 25)
    groups = find_groups(model, IMAGE)
    return groups.only(groups.matching(("inner",))), CostModel(model, groups, IMAGE)


def drawn(groups, seed=0, scale=None, missing=0):
    """Return paths that add and drop channels, the last `missing` of each never in."""
    rng, parts = np.random.default_rng(seed), ({}, {}, {})
    for index, (name, width) in enumerate(groups.widths.items()):
        outside, inside, supports = list(range(width - missing)), [], []
        while outside:
            drops = len(inside) > 1 and rng.random() < 0.3
            source, target = (inside, outside) if drops else (outside, inside)
            target.append(source.pop(rng.integers(len(source))))
            supports.append(np.isin(np.arange(width), inside))
        penalties = np.sort(rng.exponential(size=len(supports)))[::-1] * (1 if scale is None else scale[index])
        values = np.append(penalties, 0.0), np.array(supports), rng.permutation(width)
        for part, value in zip(parts, values, strict=True):
            part[name] = torch.from_numpy(np.ascontiguousarray(value))
    return PathRanking("apib", *parts)


def at(ranking, groups, penalty, least=1):
    """Return for each group its largest support at any penalty above this one."""
    widths = {}
    for name in groups:
        knots, sizes = ranking.penalties[name].tolist(), ranking.sizes[name].tolist()
        widths[name] = max([least, *(size for knot, size in zip(knots, sizes, strict=False) if knot > penalty)])
    return widths


def penalty_of(ranking, groups, cost, macs, least=1):
    """Bisect log α as the authors do, on looked-up supports: the least penalty within the budget."""
    low, high = -40.0, 10.0
    for _ in range(80):
        middle = (low + high) / 2
        fits = cost.cost(at(ranking, groups, np.exp(middle), least)).macs <= macs
        low, high = (low, middle) if fits else (middle, high)
    return np.exp(high)


def build(**options):
    return ALLOCATIONS.build("hsic_lasso", **options)


@pytest.mark.parametrize("percent", range(30, 95, 9))
@pytest.mark.parametrize("least", [1, 5])
def test_the_widths_are_those_of_the_bisected_penalty_where_all_channels_cost_the_same(problem, percent, least):
    groups, cost = problem
    for seed in range(5):
        ranking, macs = drawn(groups, seed), cost.full.macs * percent // 100
        widths = build(minimum_width=least).widths(groups, cost, macs, ranking)
        assert macs - ONE < cost.cost(widths).macs <= macs
        assert widths == at(ranking, groups, penalty_of(ranking, groups, cost, macs, least), least)


def test_a_budget_that_a_penalty_meets_exactly_gives_the_widths_of_that_penalty(problem):
    groups, cost = problem
    ranking = drawn(groups)
    for penalty in (1.0, 0.5, 0.2):
        expected = at(ranking, groups, penalty)
        assert build().widths(groups, cost, cost.cost(expected).macs, ranking) == expected


def test_a_floor_raises_the_penalty_of_all_groups(problem):
    groups, cost = problem
    ranking, macs = drawn(groups, scale=(1e-3, 1.0, 1.0)), cost.full.macs * 55 // 100
    free, floored = (build(minimum_width=least).widths(groups, cost, macs, ranking) for least in (1, 12))
    first, *others = groups
    assert free[first] < 12 == floored[first]
    assert all(floored[name] <= free[name] for name in others)
    assert sum(floored[name] for name in others) < sum(free[name] for name in others)
    penalties = [penalty_of(ranking, groups, cost, macs, least) for least in (1, 12)]
    assert penalties[1] > penalties[0]


def test_a_floor_above_a_groups_width_is_its_width(problem):
    groups, cost = problem
    widths = build(minimum_width=25).widths(groups, cost, cost.full.macs * 98 // 100, drawn(groups))
    assert widths[next(iter(groups))] == 20


def test_beyond_the_ends_of_the_paths_the_others_come_back_in_equal_shares(problem):
    groups, cost = problem
    ranking = drawn(groups, missing=10)
    ends = {name: width - 10 for name, width in groups.widths.items()}
    halves = {name: width - 5 for name, width in groups.widths.items()}
    assert build().widths(groups, cost, cost.cost(ends).macs, ranking) == ends
    assert build().widths(groups, cost, cost.cost(halves).macs, ranking) == halves
    assert build().widths(groups, cost, cost.full.macs, ranking) == groups.widths


def test_paths_that_are_empty_leave_equal_shares(problem):
    groups, cost = problem
    empty = {name: torch.zeros(0, width, dtype=torch.bool) for name, width in groups.widths.items()}
    orders = {name: torch.arange(width) for name, width in groups.widths.items()}
    ranking = PathRanking("apib", dict.fromkeys(groups, torch.zeros(1)), empty, orders)
    macs = cost.full.macs // 2
    widths = build().widths(groups, cost, macs, ranking)
    assert macs - ONE < cost.cost(widths).macs <= macs
    assert all(0.4 * full <= widths[name] <= 0.6 * full for name, full in groups.widths.items())


def test_looks_at_a_ranking_of_apib_with_the_options_that_it_is_given():
    assert build().looks_at_ranking
    assert build().ranked_by == CriterionSpec(name="apib")
    assert build(criterion={"kernel": "gauss"}).ranked_by == CriterionSpec(name="apib", options={"kernel": "gauss"})


def test_impossible_options_are_refused():
    with pytest.raises(OptionError, match="allocation 'hsic_lasso', minimum_width: expected at least 1, got 0"):
        build(minimum_width=0)
    with pytest.raises(OptionError, match="allocation 'hsic_lasso', criterion: expected options of apib, got 'l1'"):
        build(criterion="l1")
    with pytest.raises(OptionError, match="criterion 'apib': unknown option 'colour'"):
        build(criterion={"colour": "red"})
    with pytest.raises(OptionError, match="criterion 'apib', kernel: expected laplace or gauss, got 'linear'"):
        build(criterion={"kernel": "linear"})


def test_a_ranking_without_paths_of_these_groups_is_one_line(problem):
    groups, cost = problem
    l1 = NestedRanking.from_scores("l1", {name: torch.rand(width) for name, width in groups.widths.items()})
    for ranking, got in ((l1, "ranking 'l1' without"), (None, "no ranking")):
        with pytest.raises(RankingError, match=f"'hsic_lasso': expected lasso paths, .* gives, got {got}$"):
            build().widths(groups, cost, cost.full.macs // 2, ranking)
    some = drawn(groups.only(list(groups)[1:]))
    with pytest.raises(RankingError, match=r"'hsic_lasso', group 'enter.0': expected 20 channels, got enter.1 30, "):
        build().widths(groups, cost, cost.full.macs // 2, some)
    with pytest.raises(PolicyError, match="budget: expected a number of MACs"):
        build().widths(groups, cost, None, drawn(groups))


def test_apib_on_a_network_gives_it_all_it_needs(problem):
    groups, cost = problem
    torch.manual_seed(0)
    ranking = CRITERIA.build("apib").rank(Blocks(20, 30, 25), groups, [(torch.randn(12, 3, 8, 8), torch.arange(12))])
    macs = cost.full.macs * 6 // 10
    widths = build().widths(groups, cost, macs, ranking)
    assert macs - ONE < cost.cost(widths).macs <= macs
