"""What every registered allocation promises, on a network with coupled, depthwise and inner groups."""

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from pruning.allocation import ALLOCATIONS
from pruning.allocation.budget import at_least
from pruning.cost import CostModel
from pruning.criteria import CRITERIA
from pruning.curves import Curve, SensitivityRanking
from pruning.errors import OptionError, PolicyError
from pruning.finding import find_groups
from pruning.greedy import GreedyRanking
from pruning.groups import ChannelGroups

IMAGE = torch.zeros(1, 3, 16, 16)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(24, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.expand, self.project = nn.Conv2d(24, 48, 1), nn.Conv2d(48, 24, 1)
        self.depthwise = nn.Conv2d(48, 48, 3, padding=1, groups=48)
        self.fc = nn.Linear(24, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.conv2(torch.relu(self.conv1(x))))
        x = x + self.project(torch.relu(self.depthwise(torch.relu(self.expand(x)))))
        return self.fc(x.mean((2, 3)))


class Grouped(nn.Module):
    """Convolution groups: a channel of `wide` is 3 filters, and 2 behind it; of `shuffled` 4."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 26, 3, padding=1)
        self.wide, self.grouped = nn.Conv2d(26, 96, 1), nn.Conv2d(96, 64, 3, padding=1, groups=32)
        self.shuffled, self.last = nn.Conv2d(64, 80, 1), nn.Conv2d(20, 40, 1)
        self.fc = nn.Linear(40, 10)

    def forward(self, x):
        x = torch.relu(self.grouped(torch.relu(self.wide(torch.relu(self.stem(x))))))
        x = torch.relu(self.last(nn.functional.pixel_shuffle(torch.relu(self.shuffled(x)), 2)))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def problem():
    return problem_of(Network)


@pytest.fixture(scope="module")
def grouped():
    return problem_of(Grouped)


def problem_of(kind):
    torch.manual_seed(0)
    model = kind()
    groups = find_groups(model, IMAGE)
    other = CRITERIA.build("l1").rank(model, groups)
    rankings = {
        "joint_quadratic": joint(model, groups),
        "adaptive": greedy(groups),
        "hsic_lasso": paths(model, groups),
        "sensitivity": SensitivityRanking(other, curves(groups)),
    }
    return groups, CostModel(model, groups, IMAGE), {name: rankings.get(name, other) for name in ALLOCATIONS.names()}


def joint(model, groups):
    images, labels = torch.randn(500, 3, 16, 16), torch.randint(10, (500,))
    return CRITERIA.build("ccp", joint=True).rank(model, groups, [(images, labels)])


def paths(model, groups):
    images, labels = torch.randn(24, 3, 16, 16), torch.randint(10, (24,))
    return CRITERIA.build("apib", normalise="frobenius").rank(model, groups, [(images, labels)])


def greedy(groups):
    """Return a search whose losses fall less and less, with noise, each group's at another speed."""
    losses = {}
    for name, width in groups.widths.items():
        falls = (0.9 + 0.2 * torch.rand(width)) * torch.exp(-torch.arange(width) * (1 + torch.rand(())) / width)
        losses[name] = 3 - torch.cat([torch.zeros(1), falls.cumsum(0) / 10])
    return GreedyRanking("dcp", {name: torch.randperm(width) for name, width in groups.widths.items()}, losses, {}, {})


def curves(groups):
    """Return losses that grow faster and faster as a group gets narrower, each group's as it is dear."""
    found = {}
    for name, width in groups.widths.items():
        widths = torch.tensor(sorted({1, *range(1, width, max(1, width // 8)), width}))
        loss = {"stem": 4, "conv1": 4}.get(name, 1) * (width / widths.double() - 1)
        found[name] = Curve(widths, loss, 1 / (1 + loss))
    return found


each_allocation = pytest.mark.parametrize("name", ALLOCATIONS.names())
each_budget = pytest.mark.parametrize("percent", range(20, 100, 5))


@each_allocation
@each_budget
def test_the_budget_is_met_within_one_percent(name, percent, problem):
    groups, cost, rankings = problem
    macs = cost.full.macs * percent // 100
    widths = ALLOCATIONS.build(name).widths(groups, cost, macs, rankings[name])
    assert 0.99 * macs <= cost.cost(widths).macs <= macs
    assert tuple(widths) == tuple(groups)
    groups.check_widths(widths)


@each_allocation
def test_a_much_larger_budget_widens_every_group(name, problem):
    groups, cost, rankings = problem
    allocation = ALLOCATIONS.build(name)
    steps = [allocation.widths(groups, cost, cost.full.macs * fifth // 5, rankings[name]) for fifth in range(1, 6)]
    assert steps[-1] == groups.widths
    for narrow, wide in pairwise(steps):
        assert all(wide[group] >= narrow[group] for group in groups)


@each_allocation
def test_groups_that_are_not_asked_for_stay_whole(name, problem):
    groups, cost, rankings = problem
    inner = ChannelGroups(tuple(groups[name] for name in groups.matching(("inner",))))
    macs = cost.full.macs * 7 // 10
    widths = ALLOCATIONS.build(name).widths(inner, cost, macs, rankings[name])
    assert set(widths) == {"conv1", "expand"}
    assert 0.99 * macs <= cost.cost(widths).macs <= macs


@pytest.mark.parametrize("name", [name for name in ALLOCATIONS.names() if "round_to" in ALLOCATIONS.options(name)])
def test_widths_are_multiples_where_asked(name, problem):
    groups, cost, rankings = problem
    macs = cost.full.macs // 2
    widths = ALLOCATIONS.build(name, round_to=8).widths(groups, cost, macs, rankings[name])
    assert all(width % 8 == 0 for width in widths.values())
    assert cost.cost(widths).macs <= macs


@pytest.mark.parametrize("name", [name for name in ALLOCATIONS.names() if "round_to" in ALLOCATIONS.options(name)])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(round_to=st.sampled_from([2, 3, 8, 16, 32]), percent=st.integers(45, 100))
def test_every_layer_has_a_multiple_of_filters_or_all_of_them(name, grouped, round_to, percent):
    groups, cost, rankings = grouped
    macs = cost.full.macs * percent // 100
    assume(macs >= cost.cost(narrowest(groups, round_to)).macs)
    widths = ALLOCATIONS.build(name, round_to=round_to).widths(groups, cost, macs, rankings[name])
    for group in groups.values():
        whole = widths[group.name] == group.width
        assert whole or all(filters % round_to == 0 for filters in filters_of(group, widths[group.name]).values())


def narrowest(groups, round_to):
    """Return the widths that no rule goes below here: some keep a tenth of every group."""
    least = {name: -(-group.width // 10) for name, group in groups.items()}
    return at_least(groups, least, round_to)


def filters_of(group, width):
    """Return how many filters each convolution has that makes or carries a group, at a width."""
    parts = (*group.makers, *(part for part in group.carried if part.tensor.endswith(".weight")))
    return {part.layer: sum(map(len, part.positions[:width])) for part in parts}


def test_a_step_is_counted_in_filters(grouped):
    groups, _, _ = grouped
    assert {name: group.width for name, group in groups.items()} == {"stem": 26, "wide": 32, "shuffled": 20, "last": 40}
    assert filters_of(groups["wide"], 1) == {"wide": 3, "grouped": 2}
    steps = {round_to: {name: groups[name].step(round_to) for name in groups} for round_to in (1, 8, 12)}
    assert steps[1] == dict.fromkeys(groups, 1)
    assert steps[8] == {"stem": 8, "wide": 8, "shuffled": 2, "last": 8}
    assert steps[12] == {"stem": 12, "wide": 12, "shuffled": 3, "last": 12}


@each_allocation
def test_an_unreachable_budget_names_the_range(name, problem):
    groups, cost, rankings = problem
    with pytest.raises(PolicyError, match=rf"budget: expected \d+ to {cost.full.macs} MACs, .*, got 1000"):
        ALLOCATIONS.build(name).widths(groups, cost, 1000, rankings[name])


@each_allocation
def test_by_default_a_budget_is_needed(name, problem):
    groups, cost, rankings = problem
    allocation = ALLOCATIONS.build(name)
    assert allocation.budgeted
    with pytest.raises(PolicyError, match="budget: expected a number of MACs, got none"):
        allocation.widths(groups, cost, None, rankings[name])


@each_allocation
def test_a_module_is_named_like_what_it_registers(name):
    module = ALLOCATIONS.get(name).__module__.rpartition(".")[2]
    assert module.rstrip("_") == name  # `global` is a keyword: its module is `global_`


@each_allocation
def test_an_unknown_option_is_an_error(name):
    with pytest.raises(OptionError, match=f"allocation '{name}': unknown option 'colour'"):
        ALLOCATIONS.build(name, colour="red")
