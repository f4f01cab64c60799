from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from pruning.allocation import ALLOCATIONS
from pruning.cost import CostModel
from pruning.errors import OptionError, RankingError
from pruning.finding import find_groups
from pruning.ranking import NestedRanking, QuadraticRanking

IMAGE = torch.zeros(1, 3, 8, 8)


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


def chain(*widths):
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in zip((3, *widths), (*widths, 4), strict=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def prepared(model, kind=("all",)):
    groups = find_groups(model, IMAGE)
    return groups.only(groups.matching(kind)), CostModel(model, groups, IMAGE)


def drawn(groups, seed=0):
    """Return a ranking whose groups share half of what they say."""
    rng = np.random.default_rng(seed)
    widths = groups.widths
    channels = sum(widths.values())
    t = rng.standard_normal((60, channels)) * rng.gamma(1, size=channels)
    t += rng.standard_normal((60, 3)) @ rng.standard_normal((3, channels)) + rng.standard_normal(channels) / 4
    S, u = torch.tensor(t.T @ t / 60), torch.tensor(t.mean(axis=0))
    linear = dict(zip(widths, u.split(list(widths.values())), strict=True))
    return QuadraticRanking.from_joint("ccp", linear, (S + S.T) / 2)


def of_cut(ranking, groups, widths):
    """Return what a cut costs by the joint loss."""
    z = []
    for name, width in groups.widths.items():
        kept = ranking.keep(name, widths[name])
        z += [float(channel not in kept) for channel in range(width)]
    z, u = torch.tensor(z, dtype=torch.float64), torch.cat([ranking.linear[name] for name in groups])
    return float(z @ ranking.joint @ z / 2 - u @ z)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("percent", [40, 60, 80])
@pytest.mark.parametrize("build", [lambda: (Blocks(9, 12, 7), ("inner",)), lambda: (chain(8, 10, 6), ("all",))])
def test_a_cut_is_never_worse_than_with_uniform_widths_and_mostly_better(build, percent, seed):
    groups, cost = prepared(*build())
    ranking, macs = drawn(groups, seed), cost.full.macs * percent // 100
    widths = ALLOCATIONS.build("joint_quadratic").widths(groups, cost, macs, ranking)
    uniform = ALLOCATIONS.build("uniform").widths(groups, cost, macs)
    assert cost.cost(widths).macs <= macs
    assert of_cut(ranking, groups, widths) <= of_cut(ranking, groups, uniform) + 1e-12


@pytest.mark.parametrize("build", [lambda: (Blocks(5, 6, 4), ("inner",)), lambda: (chain(5, 6, 4), ("all",))])
def test_the_widths_stand_well_before_the_uniform_ones_among_all_at_this_budget(build):
    groups, cost = prepared(*build())
    places = []
    for seed in range(10):
        ranking, macs = drawn(groups, seed), cost.full.macs * 6 // 10
        values = []
        for state in product(*(range(1, width + 1) for width in groups.widths.values())):
            widths = dict(zip(groups, state, strict=True))
            if 0.9 * macs <= cost.cost(widths).macs <= macs:
                values.append(of_cut(ranking, groups, widths))
        rules = [ALLOCATIONS.build(name) for name in ("joint_quadratic", "uniform")]
        found = [of_cut(ranking, groups, rule.widths(groups, cost, macs, ranking)) for rule in rules]
        places.append([np.mean(np.array(values) < value - 1e-12) for value in found])  # the share that is better
    joint, uniform = np.mean(places, axis=0)
    assert joint <= 0.75 * uniform


def test_of_two_groups_that_say_the_same_not_both_are_narrow():
    groups, cost = prepared(Blocks(8, 8, 8), ("inner",))
    rng = np.random.default_rng(0)
    first, third = rng.standard_normal((60, 8)), 2 * rng.standard_normal((60, 8))
    t = torch.tensor(np.concatenate([first, first, third], axis=1))
    S = t.T @ t / 60
    linear = {name: torch.zeros(8) for name in groups}
    ranking = QuadraticRanking.from_joint("ccp", linear, (S + S.T) / 2)
    macs = cost.cost(dict(zip(groups, (4, 8, 8), strict=True))).macs
    widths = list(ALLOCATIONS.build("joint_quadratic").widths(groups, cost, macs, ranking).values())
    kept = [set(ranking.keep(name, width)) for name, width in zip(groups, widths, strict=True)]
    assert min(widths[:2]) < 8
    assert kept[0] | kept[1] == set(range(8))


def test_every_group_keeps_its_minimum_share():
    groups, cost = prepared(Blocks(10, 10, 10), ("inner",))
    ranking = drawn(groups)
    S = ranking.joint.clone()
    S[:10] *= 1e-6  # the first group hardly matters
    S[:, :10] *= 1e-6
    linear = ranking.linear | {next(iter(groups)): torch.zeros(10)}
    ranking = QuadraticRanking.from_joint("ccp", linear, S)
    macs = cost.cost(dict(zip(groups, (4, 10, 10), strict=True))).macs
    for share, least in ((0.1, 1), (0.6, 6)):
        widths = ALLOCATIONS.build("joint_quadratic", minimum_share=share).widths(groups, cost, macs, ranking)
        assert min(widths.values()) >= least
    with pytest.raises(OptionError, match=r"minimum_share: expected 0 to 1, got 1\.1"):
        ALLOCATIONS.build("joint_quadratic", minimum_share=1.1)


def test_groups_in_another_order_or_fewer_of_them_take_their_own_terms():
    groups, cost = prepared(Blocks(6, 8, 5), ("inner",))
    ranking, macs = drawn(groups), cost.full.macs * 7 // 10
    some = groups.only(list(groups)[1:])
    S = ranking.joint[6:, 6:]
    alone = QuadraticRanking.from_joint("ccp", {name: ranking.linear[name] for name in some}, S)
    rule = ALLOCATIONS.build("joint_quadratic")
    assert rule.widths(some, cost, macs, ranking) == rule.widths(some, cost, macs, alone)


def test_a_ranking_without_terms_between_groups_is_one_line_that_says_what_to_do():
    groups, cost = prepared(chain(5, 6, 4))
    joint, rule = drawn(groups), ALLOCATIONS.build("joint_quadratic")
    nested = NestedRanking.from_scores("l1", joint.scores)
    for ranking, got in (
        (nested, "ranking 'l1' without"),
        (QuadraticRanking("ccp", joint.linear, joint.quadratic), "ranking 'ccp' without"),
        (None, "no ranking"),
    ):
        with pytest.raises(
            RankingError, match=f"'joint_quadratic': expected S .* joint: true gives, got {got}"
        ) as error:
            rule.widths(groups, cost, cost.full.macs // 2, ranking)
        assert "\n" not in str(error.value)
    other = drawn(prepared(chain(7, 6, 4))[0])
    with pytest.raises(RankingError, match="group '0': expected 5 channels, got 0 7, "):
        rule.widths(groups, cost, cost.full.macs // 2, other)
