import pytest
import torch
from torch import nn

from pruning.allocation import ALLOCATIONS
from pruning.cost import CostModel
from pruning.errors import OptionError, PolicyError
from pruning.finding import find_groups

IMAGE = torch.zeros(1, 3, 12, 12)


@pytest.fixture(scope="module")
def network():
    model = nn.Sequential(
        *(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 80, 3), nn.ReLU(), nn.Conv2d(80, 20, 3)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 10)),
    )
    groups = find_groups(model, IMAGE)
    return groups, CostModel(model, groups, IMAGE)


@pytest.mark.parametrize("percent", [20, 50, 90])
def test_every_group_keeps_the_same_share(network, percent):
    groups, cost = network
    macs = cost.full.macs * percent // 100
    widths = ALLOCATIONS.build("uniform").widths(groups, cost, macs)
    shares = [widths[name] / group.width for name, group in groups.items()]
    assert max(shares) - min(shares) <= 1 / 20 + 1 / 40  # a channel of the narrowest group and half of one of the next
    assert 0.99 * macs <= cost.cost(widths).macs <= macs


@pytest.mark.parametrize("kept", [1, 4, 10, 15, 19, 20])
def test_the_cost_of_a_uniform_network_gives_back_its_widths(network, kept):
    groups, cost = network
    widths = {name: group.width * kept // 20 for name, group in groups.items()}
    assert ALLOCATIONS.build("uniform").widths(groups, cost, cost.cost(widths).macs) == widths


def test_widths_are_multiples_or_full(network):
    groups, cost = network
    widths = ALLOCATIONS.build("uniform", round_to=8).widths(groups, cost, cost.full.macs // 2)
    assert all(width % 8 == 0 or width == groups[name].width for name, width in widths.items())


def test_an_unreachable_budget_names_the_range(network):
    groups, cost = network
    with pytest.raises(PolicyError, match=rf"budget: expected \d+ to {cost.full.macs} MACs"):
        ALLOCATIONS.build("uniform").widths(groups, cost, 1)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.7, 0.99])
def test_a_rate_fixes_the_widths_exactly_whatever_the_budget(network, rate):
    groups, cost = network
    rule = ALLOCATIONS.build("uniform", rate=rate)
    percent = round(rate * 100)
    expected = {name: width - percent * width // 100 for name, width in groups.widths.items()}
    assert not rule.budgeted
    assert rule.widths(groups, cost, None) == rule.widths(groups, cost, 1) == expected


def test_a_rate_is_no_binary_fraction():
    model = nn.Sequential(nn.Conv2d(3, 90, 1), nn.Conv2d(90, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    groups = find_groups(model, IMAGE)
    cost = CostModel(model, groups, IMAGE)
    assert 90 - int(90 * 0.7) == 28  # 62.99…
    assert ALLOCATIONS.build("uniform", rate=0.7).widths(groups, cost, None) == {"0": 27}


def test_the_widths_of_a_rate_are_rounded_up(network):
    groups, cost = network
    widths = ALLOCATIONS.build("uniform", rate=0.45, round_to=16).widths(groups, cost, None)
    assert widths == {"0": 32, "2": 48, "4": 16}  # 22, 44, 11
    widths = ALLOCATIONS.build("uniform", rate=0.1, round_to=16).widths(groups, cost, None)
    assert widths == {"0": 40, "2": 80, "4": 20}


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_a_rate_that_leaves_nothing_or_adds_is_refused(rate):
    with pytest.raises(OptionError, match=f"rate: expected 0 to less than 1, got {rate}"):
        ALLOCATIONS.build("uniform", rate=rate)
