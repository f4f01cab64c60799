import pytest
import torch
from torch import nn

from pruning.allocation import ALLOCATIONS
from pruning.cost import CostModel
from pruning.errors import OptionError, RankingError
from pruning.finding import find_groups
from pruning.greedy import GreedyRanking
from pruning.ranking import NestedRanking

IMAGE = torch.zeros(1, 3, 12, 12)


@pytest.fixture(scope="module")
def network():
    model = nn.Sequential(
        *(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 16, 3), nn.ReLU(), nn.Conv2d(16, 6, 3)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)),
    )
    groups = find_groups(model, IMAGE)
    return groups, CostModel(model, groups, IMAGE)


def greedy(curves, widths):
    losses = {name: torch.tensor(curve, dtype=torch.float64) for name, curve in curves.items()}
    return GreedyRanking("dcp", {name: torch.arange(width) for name, width in widths.items()}, losses, {}, {})


def drawn(widths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return greedy(
        {n: (2 - torch.rand(w + 1, generator=generator).sort().values).tolist() for n, w in widths.items()}, widths
    )


def stops_at(curve, epsilon, width):
    """Return the number of picks by the paper's loop."""
    for t in range(1, len(curve)):
        if abs(curve[t - 1] - curve[t]) / curve[0] <= epsilon:
            return t
    return width


@pytest.mark.parametrize("epsilon", [1e-4, 0.01, 0.02, 0.05, 0.3, 2])
@pytest.mark.parametrize("seed", range(5))
def test_each_group_stops_where_the_loss_first_drops_by_no_more_than_epsilon(network, epsilon, seed):
    groups, cost = network
    ranking, rule = drawn(groups.widths, seed), ALLOCATIONS.build("adaptive", epsilon=epsilon)
    expected = {n: stops_at(ranking.losses[n].tolist(), epsilon, width) for n, width in groups.widths.items()}
    assert not rule.budgeted
    assert rule.widths(groups, cost, None, ranking) == expected
    assert rule.widths(groups, cost, 1, ranking) == expected  # whatever the budget


def test_a_rise_of_the_loss_counts_like_a_drop_and_a_later_larger_one_is_not_looked_at(network):
    groups, cost = network
    flat = {name: [4.0] + [1.0] * width for name, width in groups.widths.items()}
    flat["0"] = [4.0, 5.0, 4.9, 1.0, *[1.0] * 7]
    widths = ALLOCATIONS.build("adaptive", epsilon=0.1).widths(groups, cost, None, greedy(flat, groups.widths))
    assert widths == {"0": 2, "2": 2, "4": 2}


def test_a_smaller_epsilon_never_narrows(network):
    groups, cost = network
    ranking, before = drawn(groups.widths), dict.fromkeys(groups, 0)
    for epsilon in (1.0, 0.1, 0.05, 0.02, 0.01, 1e-3, 1e-5):
        widths = ALLOCATIONS.build("adaptive", epsilon=epsilon).widths(groups, cost, None, ranking)
        assert all(widths[name] >= before[name] for name in groups)
        before = widths


@pytest.mark.parametrize("epsilon", [0.01, 0.02, 0.05])
def test_the_cost_of_an_epsilon_gives_back_its_widths(network, epsilon):
    groups, cost = network
    ranking = drawn(groups.widths, 3)
    widths = ALLOCATIONS.build("adaptive", epsilon=epsilon).widths(groups, cost, None, ranking)
    assert ALLOCATIONS.build("adaptive").widths(groups, cost, cost.cost(widths).macs, ranking) == widths


def test_the_widths_of_an_epsilon_are_rounded_up(network):
    groups, cost = network
    ranking = drawn(groups.widths)
    exact = ALLOCATIONS.build("adaptive", epsilon=0.02).widths(groups, cost, None, ranking)
    widths = ALLOCATIONS.build("adaptive", epsilon=0.02, round_to=4).widths(groups, cost, None, ranking)
    assert widths == {name: min(-(-width // 4) * 4, groups[name].width) for name, width in exact.items()}


def test_losses_that_end_too_early_are_an_error_that_says_what_to_do(network):
    groups, cost = network
    curves = {name: curve.tolist() for name, curve in drawn(groups.widths).losses.items()}
    curves["2"] = [8.0, 4.0, 2.0, 1.9]
    ranking, rule = greedy(curves, groups.widths), ALLOCATIONS.build("adaptive", epsilon=1e-6)
    with pytest.raises(
        RankingError, match=r"'adaptive', group '2': .* a drop of 1e-06, got those of 3 of 16 picks; .*complete: true"
    ):
        rule.widths(groups, cost, None, ranking)
    assert ALLOCATIONS.build("adaptive", epsilon=0.02).widths(groups, cost, None, ranking)["2"] == 3
    with pytest.raises(RankingError, match=r"group '2': expected losses until the budget is spent, .*complete: true"):
        ALLOCATIONS.build("adaptive").widths(groups, cost, cost.full.macs * 9 // 10, ranking)


def test_a_ranking_without_losses_is_an_error(network):
    groups, cost = network
    nested = NestedRanking("l1", {name: torch.arange(width) for name, width in groups.widths.items()})
    for epsilon in (None, 0.1):
        rule = ALLOCATIONS.build("adaptive", epsilon=epsilon)
        with pytest.raises(
            RankingError, match=r"'adaptive': expected the losses of a greedy search.*, got ranking 'l1'"
        ):
            rule.widths(groups, cost, cost.full.macs // 2, nested)
        with pytest.raises(RankingError, match=r"'adaptive': expected the losses .*, got no ranking"):
            rule.widths(groups, cost, cost.full.macs // 2, None)


@pytest.mark.parametrize("epsilon", [0, -1, float("inf"), float("nan")])
def test_an_epsilon_that_is_no_tolerance_is_refused(epsilon):
    with pytest.raises(OptionError, match="epsilon: expected a number above 0, got"):
        ALLOCATIONS.build("adaptive", epsilon=epsilon)
