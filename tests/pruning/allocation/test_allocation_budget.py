from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruning.allocation.budget import TOLERANCE, project
from pruning.allocation.trades import REACHES
from pruning.cost import Cost, CostModel
from pruning.errors import OptionError, PolicyError
from pruning.finding import find_groups
from pruning.groups import ChannelGroup, ChannelGroups

REACH = max(REACHES)
MODERATE = settings(max_examples=80, deadline=None)


class ProductCost:
    """MACs are a constant and a sum of products of two widths, never falling as a width grows."""

    def __init__(self, groups, terms, constant=0):
        self.groups = tuple(groups)
        self.widths = np.array([group.width for group in groups.values()], dtype=np.int64)
        self.terms, self.constant = terms, constant
        self.full = self.cost(groups.widths)

    def cost(self, widths):
        row = {**dict(zip(self.groups, self.widths.tolist(), strict=True)), **widths}
        row = [row[name] for name in self.groups]
        return Cost(self.constant + sum(factor * row[i] * row[j] for i, j, factor in self.terms), 0)

    def costs(self, widths):
        named = [dict(zip(self.groups, row, strict=True)) for row in np.asarray(widths).tolist()]
        macs = np.array([self.cost(row).macs for row in named], dtype=np.int64)
        return macs, np.zeros_like(macs)


def groups_of(*widths, minimum=1):
    return ChannelGroups(
        tuple(ChannelGroup(f"g{i}", width, False, (), (), (), min(minimum, width)) for i, width in enumerate(widths))
    )


def even(groups):
    return lambda t: {name: t * width for name, width in groups.widths.items()}


@st.composite
def problems(draw, max_groups=4, max_width=24):
    widths = draw(st.lists(st.integers(2, max_width), min_size=1, max_size=max_groups))
    groups = groups_of(*widths, minimum=draw(st.integers(1, 4)))
    index = st.integers(0, len(widths) - 1)
    terms = draw(st.lists(st.tuples(index, index, st.integers(1, 50)), max_size=6))
    every = [(i, i, draw(st.integers(0, 9))) for i in range(len(widths))]
    cost = ProductCost(groups, [*terms, *every], draw(st.integers(0, 1000)))
    shares = [draw(st.floats(0.1, 3)) for _ in widths]

    def direction(t):
        return {name: t / 0.1 * share * groups[name].width for name, share in zip(groups, shares, strict=True)}

    return groups, cost, direction


def legal(group, round_to):
    return [w for w in range(group.minimum, group.width + 1) if w % round_to == 0 or w == group.width]


def lowest(groups, cost, round_to=1):
    return cost.cost({name: min(legal(group, round_to)) for name, group in groups.items()}).macs


@MODERATE
@given(problem=problems(), share=st.floats(0, 1), round_to=st.sampled_from([1, 2, 8]))
def test_the_widths_fit_the_budget_and_the_groups(problem, share, round_to):
    groups, cost, direction = problem
    low = lowest(groups, cost, round_to)
    macs = low + int(share * (cost.full.macs - low))
    widths = project(groups, cost, direction, macs, round_to=round_to)
    assert cost.cost(widths).macs <= macs
    assert tuple(widths) == tuple(groups)
    for name, group in groups.items():
        assert widths[name] in legal(group, round_to)
        assert type(widths[name]) is int


@MODERATE
@given(problem=problems(), share=st.floats(0, 1), round_to=st.sampled_from([1, 8]))
def test_no_single_step_fits_any_more(problem, share, round_to):
    groups, cost, direction = problem
    low = lowest(groups, cost, round_to)
    macs = low + int(share * (cost.full.macs - low))
    widths = project(groups, cost, direction, macs, round_to=round_to)
    spent = cost.cost(widths).macs
    for name, group in groups.items():
        wider = [width for width in legal(group, round_to) if width > widths[name]]
        if wider:
            one_step = cost.cost({**widths, name: wider[0]}).macs
            assert one_step > macs or one_step == spent or spent >= (1 - TOLERANCE) * macs


@MODERATE
@given(problem=problems(max_groups=2, max_width=1 + REACH), share=st.floats(0, 1))
def test_two_groups_land_within_one_percent_or_at_the_nearest_of_all_widths(problem, share):
    groups, cost, direction = problem
    low = lowest(groups, cost)
    macs = low + int(share * (cost.full.macs - low))
    every = product(*(legal(group, 1) for group in groups.values()))
    reachable = [cost.cost(dict(zip(groups, widths, strict=True))).macs for widths in every]
    spent = cost.cost(project(groups, cost, direction, macs)).macs
    assert spent >= (1 - TOLERANCE) * macs or spent == max(value for value in reachable if value <= macs)


@MODERATE
@given(problem=problems(max_groups=3, max_width=40), share=st.floats(0, 1))
def test_short_of_the_tolerance_no_trade_between_two_groups_spends_more(problem, share):
    groups, cost, direction = problem
    low = lowest(groups, cost, 8)
    macs = low + int(share * (cost.full.macs - low))
    widths = project(groups, cost, direction, macs, round_to=8)
    spent = cost.cost(widths).macs
    if spent >= (1 - TOLERANCE) * macs:
        return
    ladders = {name: legal(group, 8) for name, group in groups.items()}
    for giver, taker, given_up, taken in product(groups, groups, range(1, REACH + 1), range(1, REACH + 1)):
        down = ladders[giver].index(widths[giver]) - given_up
        up = ladders[taker].index(widths[taker]) + taken
        if giver != taker and down >= 0 and up < len(ladders[taker]):
            traded = cost.cost({**widths, giver: ladders[giver][down], taker: ladders[taker][up]}).macs
            assert traded > macs or traded <= spent


@MODERATE
@given(problem=problems())
def test_the_two_ends_are_met_exactly(problem):
    groups, cost, direction = problem
    narrowest = {name: group.minimum for name, group in groups.items()}
    assert cost.cost(project(groups, cost, direction, cost.cost(narrowest).macs)).macs == cost.cost(narrowest).macs
    assert project(groups, cost, direction, cost.full.macs) == groups.widths
    assert project(groups, cost, direction, 10 * cost.full.macs + 1) == groups.widths


def test_the_widths_follow_the_direction():
    groups = groups_of(1000, 1000, 1000)
    cost = ProductCost(groups, [(0, 1, 3), (1, 2, 5)], 1)
    widths = project(groups, cost, lambda t: {"g0": 1000 * t, "g1": 500 * t, "g2": 2000 * t}, 700_000)
    assert widths["g0"] / widths["g1"] == pytest.approx(2, rel=0.02)
    assert widths["g2"] / widths["g1"] == pytest.approx(4, rel=0.02)


def test_a_wish_goes_to_the_nearest_width():
    groups = groups_of(64, 64)
    cost = ProductCost(groups, [(0, 0, 1)])  # only g0 costs anything
    widths = project(groups, cost, lambda t: {"g0": 40 * t, "g1": 20.4 * t}, 32 * 32, round_to=16)
    assert widths == {"g0": 32, "g1": 64}  # what costs nothing is given away


def test_what_is_left_goes_to_the_groups_in_order_one_channel_each():
    groups = groups_of(16, 16, 16)
    cost = ProductCost(groups, [(0, 0, 0)])
    cost.cost = lambda widths: Cost(sum({**groups.widths, **widths}.values()), 0)
    assert project(groups, cost, even(groups), 25) == {"g0": 9, "g1": 8, "g2": 8}
    assert project(groups, cost, even(groups), 26) == {"g0": 9, "g1": 9, "g2": 8}


def test_what_is_left_then_goes_one_step_beyond_the_direction():
    groups = groups_of(10, 10)
    cost = ProductCost(groups, [(0, 0, 100), (1, 1, 1)])
    assert project(groups, cost, even(groups), 2500 + 49) == {"g0": 5, "g1": 7}  # (5, 5), then (·, 6), then (·, 7)
    assert project(groups, cost, even(groups), 2500 + 66) == {"g0": 5, "g1": 7}  # near enough, and no further


def test_a_direction_that_ends_early_is_filled_up_evenly():
    groups = groups_of(16, 16)
    cost = ProductCost(groups, [(0, 0, 1), (1, 1, 1)])
    assert project(groups, cost, lambda t: {"g0": 4 * t, "g1": 6 * t}, 244) == {"g0": 10, "g1": 12}


def test_trades_find_what_single_steps_cannot():
    groups = groups_of(24, 24, minimum=8)  # with multiples of 8 the costs are 7a + 5b for a, b in 1, 2, 3
    cost = ProductCost(groups, [])
    cost.cost = lambda widths: Cost(7 * widths["g0"] // 8 + 5 * widths["g1"] // 8, 0)
    assert project(groups, cost, lambda t: {"g0": 24 * t, "g1": 8}, 22, round_to=8) == {"g0": 8, "g1": 24}


def test_the_least_of_the_direction_is_never_undercut():
    groups = groups_of(32, 32)
    cost = ProductCost(groups, [(0, 0, 1), (1, 1, 1)])

    def direction(t):
        return {"g0": max(9, 32 * t), "g1": 32 * t}

    assert project(groups, cost, direction, 82) == {"g0": 9, "g1": 1}
    wider_second = project(groups, cost, lambda t: {"g0": max(9, 32 * t), "g1": 64 * t}, 330, round_to=8)
    assert wider_second == {"g0": 16, "g1": 8}  # g0 at 8, the multiple nearest to 9, would let g1 have 16
    with pytest.raises(PolicyError, match="expected 82 to 2048 MACs"):
        project(groups, cost, direction, 81)


def test_groups_that_are_not_named_stay_whole():
    every = groups_of(10, 10, 10)
    cost = ProductCost(every, [(0, 1, 1), (1, 2, 1)])
    some = ChannelGroups((every["g2"],))
    assert project(some, cost, even(some), 100 + 10 * 4) == {"g2": 4}


def test_a_real_network_lands_within_one_percent_at_every_budget():
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()),
        *(nn.Conv2d(32, 24, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)),
    )
    image = torch.zeros(1, 3, 16, 16)
    groups = find_groups(model, image)
    cost = CostModel(model, groups, image)
    for percent in range(5, 101, 5):
        macs = cost.full.macs * percent // 100
        spent = cost.cost(project(groups, cost, even(groups), macs)).macs
        assert 0.99 * macs <= spent <= macs


def test_a_budget_below_the_narrowest_network_names_the_range():
    groups = groups_of(4, 4)
    cost = ProductCost(groups, [(0, 1, 1)], 100)
    with pytest.raises(PolicyError, match="budget: expected 101 to 116 MACs, which the widths can reach, got 100"):
        project(groups, cost, even(groups), 100)


def test_rounding_to_nothing_is_an_error():
    groups = groups_of(4)
    with pytest.raises(OptionError, match="round_to: expected at least 1, got 0"):
        project(groups, ProductCost(groups, [(0, 0, 1)]), even(groups), 10, round_to=0)
