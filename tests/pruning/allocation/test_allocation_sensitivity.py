import copy
import warnings
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import nn

from pruning import evaluate, prune, recalibrate
from pruning.allocation import ALLOCATIONS, levels
from pruning.allocation.levels import choose_levels
from pruning.cost import CostModel
from pruning.criteria import CRITERIA
from pruning.curves import Curve, SensitivityRanking
from pruning.errors import OptionError, PolicyError, RankingError
from pruning.finding import find_groups
from pruning.policy import CriterionSpec
from pruning.ranking import NestedRanking

IMAGE = torch.zeros(1, 3, 8, 8)


def chain():
    """Return a network in which both axes of a weight are cut."""
    widths = (3, 7, 9, 6, 4)
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Residual(nn.Module):
    """Reads and makes one group with one weight, and has an inner group."""

    def __init__(self):
        super().__init__()
        self.stem, self.same = nn.Conv2d(3, 9, 3, padding=1), nn.Conv2d(9, 9, 3, padding=1)
        self.enter, self.leave, self.fc = nn.Conv2d(9, 6, 3), nn.Conv2d(6, 9, 3, padding=2), nn.Linear(9, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.same(x))
        return self.fc((x + self.leave(torch.relu(self.enter(x)))).mean((2, 3)))


class Separable(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.expand = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 10, 1)
        self.depthwise = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.project, self.fc = nn.Conv2d(10, 6, 1), nn.Linear(6 * 16, 5)

    def forward(self, x):
        x = torch.relu(self.depthwise(torch.relu(self.expand(torch.relu(self.stem(x))))))
        return self.fc(nn.functional.avg_pool2d(self.project(x), 2).flatten(1))


class Branches(nn.Module):
    """Reads two groups with one axis."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.join, self.fc = nn.Conv2d(11, 7, 3), nn.Linear(7, 5)

    def forward(self, x):
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], dim=1)
        return self.fc(torch.relu(self.join(x)).mean((2, 3)))


def wide():
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise((3, 40, 64, 48, 4))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


each_network = pytest.mark.parametrize("build", [chain, Residual, Separable, Branches])


def prepared(model, kind="all"):
    groups = find_groups(model, IMAGE)
    return groups.only(groups.matching((kind,))), CostModel(model, groups, IMAGE)


def drawn(groups, seed=0, *, falling=True, points=5):
    """Return curves at some widths; where they do not only fall, they are noisy as measured ones are."""
    rng = np.random.default_rng(seed)
    curves = {}
    for name, width in groups.widths.items():
        widths = sorted({1, width, *rng.integers(1, width + 1, points).tolist()})
        steps = rng.gamma(1, size=len(widths)) - (0 if falling else 0.7)
        loss = torch.tensor(np.cumsum(steps[::-1])[::-1].copy())
        curves[name] = Curve(torch.tensor(widths), loss, 1 - loss / loss.abs().max().clamp_min(1) / 2)
    return measured(curves)


def measured(curves):
    return SensitivityRanking(NestedRanking("l1", {}), curves)


def flat(width):
    return Curve(torch.tensor([1, width]), torch.zeros(2).double(), torch.ones(2).double())


def increase(ranking, widths, measure="loss"):
    """Return the sum of what the curves say, straight between two points."""
    total = 0.0
    for name, width in widths.items():
        curve = ranking.curves[name]
        values = curve.loss if measure == "loss" else -curve.accuracy
        after = next(index for index, point in enumerate(curve.widths.tolist()) if point >= width)
        if int(curve.widths[after]) == width:
            value = float(values[after])
        else:
            a, b = curve.widths[after - 1 : after + 1].tolist()
            value = (float(values[after - 1]) * (b - width) + float(values[after]) * (width - a)) / (b - a)
        total += value - float(values[-1])
    return total


def brute_force(groups, cost, macs, value, enough=0):
    """Return the least value of all width vectors within the budget."""
    vectors = list(product(*(range(1, width + 1) for width in groups.widths.values())))
    widths = np.tile(cost.widths, (len(vectors), 1))
    widths[:, [cost.groups.index(name) for name in groups]] = vectors
    spent = cost.costs(widths)[0]
    fitting = np.array(vectors)[(enough <= spent) & (spent <= macs)]
    table = {name: [value(name, width) for width in range(1, full + 1)] for name, full in groups.widths.items()}
    values = sum(np.array(table[name])[fitting[:, index] - 1] for index, name in enumerate(groups))
    return values.min()


def allocate(groups, cost, macs, ranking, **options):
    return ALLOCATIONS.build("sensitivity", **options).widths(groups, cost, macs, ranking)


@each_network
@pytest.mark.parametrize("falling", [True, False])
@pytest.mark.parametrize("percent", [15, 40, 60, 85])
@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_the_best_of_all_width_vectors(build, falling, percent, seed):
    groups, cost = prepared(build())
    ranking, macs = drawn(groups, seed, falling=falling), cost.full.macs * percent // 100
    allowed = {name: np.arange(1, width + 1) for name, width in groups.widths.items()}
    losses = {
        name: np.array([increase(ranking, {name: w}) for w in widths.tolist()]) for name, widths in allowed.items()
    }
    choice = choose_levels(allowed, losses, cost, macs)
    least = brute_force(groups, cost, macs, lambda name, width: losses[name][width - 1])
    assert not choice.stopped
    assert cost.cost(choice.widths).macs <= macs
    assert sum(losses[name][width - 1] for name, width in choice.widths.items()) == pytest.approx(least, abs=1e-9)


@each_network
@pytest.mark.parametrize("falling", [True, False])
@pytest.mark.parametrize("measure", ["loss", "accuracy"])
def test_the_widths_are_the_best_of_all_that_spend_the_budget(build, measure, falling):
    groups, cost = prepared(build())
    ranking, rng = drawn(groups, 7, falling=falling), np.random.default_rng(0)
    for _ in range(8):
        macs = cost.cost({name: int(rng.integers(1, width + 1)) for name, width in groups.widths.items()}).macs
        widths = allocate(groups, cost, macs, ranking, measure=measure)
        assert cost.cost(widths).macs <= macs
        enough = int(np.ceil(0.99 * macs))
        least = brute_force(groups, cost, macs, lambda name, width: increase(ranking, {name: width}, measure), enough)
        assert cost.cost(widths).macs >= enough
        assert increase(ranking, widths, measure) == pytest.approx(least, abs=1e-9)


@each_network
@pytest.mark.parametrize("levels", [4, 99])
@pytest.mark.parametrize("seed", range(4))
def test_noisy_curves_do_not_make_it_worse_than_uniform_widths(build, levels, seed):
    groups, cost = prepared(build())
    ranking = drawn(groups, seed, falling=False)
    for percent in (30, 60, 90):
        macs = cost.full.macs * percent // 100
        widths = allocate(groups, cost, macs, ranking, levels=levels)
        uniform = ALLOCATIONS.build("uniform").widths(groups, cost, macs)
        assert cost.cost(widths).macs <= macs
        if cost.cost(uniform).macs >= 0.99 * macs or cost.cost(widths).macs < 0.99 * macs:
            assert increase(ranking, widths) <= increase(ranking, uniform) + 1e-12


@each_network
def test_a_larger_budget_never_has_a_larger_predicted_loss(build):
    groups, cost = prepared(build())
    ranking = drawn(groups, 3, falling=False)
    allowed = {name: np.arange(1, width + 1) for name, width in groups.widths.items()}
    losses = {
        name: np.array([increase(ranking, {name: w}) for w in widths.tolist()]) for name, widths in allowed.items()
    }
    found = []
    for macs in np.linspace(0.15, 1, 20) * cost.full.macs:
        widths = choose_levels(allowed, losses, cost, int(macs)).widths
        found.append(sum(losses[name][width - 1] for name, width in widths.items()))
    assert all(wide <= narrow + 1e-9 for narrow, wide in pairwise(found))


class Blocks(nn.Module):
    """Inner groups of which a channel is less than a hundredth of the network."""

    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)
        self.enter = nn.ModuleList(nn.Conv2d(6, 24, 3, padding=1) for _ in range(9))
        self.leave = nn.ModuleList(nn.Conv2d(24, 6, 3, padding=1) for _ in range(9))

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for enter, leave in zip(self.enter, self.leave, strict=True):
            x = torch.relu(x + leave(torch.relu(enter(x))))
        return self.fc(x.mean((2, 3)))


def test_where_channels_are_many_a_larger_budget_never_has_a_larger_predicted_loss():
    groups, cost = prepared(Blocks(), "inner")
    ranking = drawn(groups, 3)
    budgets = [cost.full.macs * percent // 100 for percent in range(45, 105, 5)]
    vectors = [allocate(groups, cost, macs, ranking, levels=99) for macs in budgets]
    assert all(0.99 * macs <= cost.cost(widths).macs <= macs for macs, widths in zip(budgets, vectors, strict=True))
    found = [increase(ranking, widths) for widths in vectors]
    assert found[-1] == 0
    assert all(larger <= smaller + 1e-9 for smaller, larger in pairwise(found))


def test_a_group_whose_loss_does_not_change_is_cut_to_its_minimum():
    groups, cost = prepared(chain())
    name = next(iter(groups))
    for narrowest in (1, 3):  # no narrower than what was measured
        useless = Curve(torch.tensor([narrowest, 7]), torch.zeros(2).double(), torch.ones(2).double())
        ranking = measured(dict(drawn(groups, 1).curves) | {name: useless})
        expected = groups.widths | {name: narrowest}
        assert allocate(groups, cost, cost.cost(expected).macs, ranking) == expected


def test_what_is_left_goes_first_to_groups_that_gain_by_it():
    groups, cost = prepared(wide())
    first, second, third = groups
    curves = {name: flat(width) for name, width in groups.widths.items()}
    curves[second] = drawn(groups).curves[second]
    macs = cost.cost({first: 1, second: 30, third: 1}).macs
    widths = allocate(groups, cost, macs, measured(curves), levels=2)
    assert (widths[first], widths[third]) == (1, 1)
    assert widths[second] == 30
    widths = allocate(groups, cost, cost.full.macs // 2, measured(curves), levels=2)
    assert widths[second] == groups[second].width
    assert 0.99 * (cost.full.macs // 2) <= cost.cost(widths).macs <= cost.full.macs // 2


@pytest.mark.parametrize("levels", [2, 3, 99])
def test_few_levels_still_spend_the_budget(levels):
    groups, cost = prepared(wide())
    ranking = drawn(groups, 2)
    for percent in (20, 50, 75):
        macs = cost.full.macs * percent // 100
        widths = allocate(groups, cost, macs, ranking, levels=levels)
        assert 0.99 * macs <= cost.cost(widths).macs <= macs


def test_each_option_changes_something():
    groups, cost = prepared(wide())
    ranking, macs = drawn(groups, 5), cost.full.macs // 3
    curves = {name: Curve(c.widths, c.loss, c.accuracy**9) for name, c in ranking.curves.items()}
    first = next(iter(curves))
    curves[first] = Curve(curves[first].widths, curves[first].loss, torch.ones_like(curves[first].loss))
    widths = allocate(groups, cost, macs, measured(curves), levels=99)
    for options in ({"measure": "accuracy"}, {"levels": 3}, {"round_to": 7}):
        assert allocate(groups, cost, macs, measured(curves), **({"levels": 99} | options)) != widths
    rounded = allocate(groups, cost, macs, measured(curves), round_to=7)
    assert all(width % 7 == 0 or width == groups[name].width for name, width in rounded.items())


def test_it_says_who_measures():
    rule = ALLOCATIONS.build("sensitivity", criterion={"criterion": "fpgm"})
    assert rule.looks_at_ranking
    assert rule.ranked_by == CriterionSpec(name="sensitivity", options={"criterion": "fpgm"})


def stopped(*args, **options):
    result = SOLVE(*args, **options)
    result.status, result.mip_gap, result.mip_dual_bound = 1, 0.25, 0.75 * result.fun
    return result


SOLVE = levels.milp


def test_when_the_time_is_over_a_warning_says_how_far_off_the_widths_can_be(monkeypatch):
    groups, cost = prepared(wide())
    ranking, macs = drawn(groups), cost.full.macs // 2
    monkeypatch.setattr(levels, "milp", stopped)
    message = r"stopped after 5 s; a sum of loss up to \S+ smaller may exist \(mip_gap 25.00%\)"
    with pytest.warns(RuntimeWarning, match=message) as seen:
        widths = allocate(groups, cost, macs, ranking, seconds=5, levels=99)
    gap = float(str(seen[0].message).split("up to ")[1].split()[0])
    assert gap == pytest.approx(0.25 * increase(ranking, widths), rel=1e-2)

    def hopeless(*args, **options):
        result = stopped(*args, **options)
        result.x = None
        return result

    monkeypatch.setattr(levels, "milp", hopeless)
    with pytest.warns(RuntimeWarning, match="stopped after 5 s; no widths were found"):
        widths = allocate(groups, cost, macs, ranking, seconds=5)
    assert 0.99 * macs <= cost.cost(widths).macs <= macs


def test_a_choice_outside_the_budget_by_less_than_the_solver_sees_is_not_taken(monkeypatch):
    groups, cost = prepared(chain())
    ranking, macs = drawn(groups), cost.full.macs // 2
    solve = levels._Program.solve
    expected = allocate(groups, cost, macs, ranking)

    def loose(self, objective, macs, enough, seconds):
        return solve(self, objective, int(1.2 * macs), int(0.9 * enough), seconds)

    monkeypatch.setattr(levels._Program, "solve", loose)
    widths = allocate(groups, cost, macs, ranking)
    assert cost.cost(widths).macs <= macs
    assert increase(ranking, widths) == pytest.approx(increase(ranking, expected), abs=1e-9)


def test_a_proof_comes_without_a_warning():
    groups, cost = prepared(chain())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        allocate(groups, cost, cost.full.macs // 2, drawn(groups))


def test_a_budget_below_the_narrowest_measured_widths_names_the_range():
    groups, cost = prepared(chain())
    curves = {
        name: Curve(torch.tensor([w // 2, w]), torch.rand(2).double(), torch.rand(2))
        for name, w in groups.widths.items()
    }
    least = cost.cost({name: width // 2 for name, width in groups.widths.items()}).macs
    with pytest.raises(PolicyError, match=f"budget: expected {least} to {cost.full.macs} MACs, .*, got {least - 1}"):
        allocate(groups, cost, least - 1, measured(curves))
    assert allocate(groups, cost, least, measured(curves)) == {name: w // 2 for name, w in groups.widths.items()}


def test_rankings_without_these_curves_and_options_that_do_not_fit_are_one_line():
    groups, cost = prepared(chain())
    whole = drawn(groups)
    del whole.curves["1"]
    for ranking, message in (
        (None, "expected the curves that criterion sensitivity measures, got no ranking"),
        (NestedRanking("l1", {}), "expected the curves that criterion sensitivity measures, got ranking 'l1' without"),
        (whole, "group '1': expected the curve of 9 channels, got 0 7, 2 6"),
        (measured(whole.curves | {"1": flat(8)}), "group '1': expected the curve of 9 channels, got 0 7, 2 6, 1 8"),
    ):
        with pytest.raises(RankingError, match=f"allocation 'sensitivity'.*{message}") as error:
            allocate(groups, cost, cost.full.macs // 2, ranking)
        assert "\n" not in str(error.value)
    for options, message in (
        ({"measure": "speed"}, "measure: expected 'loss' or 'accuracy', got 'speed'"),
        ({"levels": 1}, "levels: expected at least 2, got 1"),
        ({"seconds": 0}, "seconds: expected a number above 0, got 0"),
    ):
        with pytest.raises(OptionError, match=message):
            ALLOCATIONS.build("sensitivity", **options)
    with pytest.raises(OptionError, match="round_to: expected at least 1, got 0"):
        allocate(groups, cost, cost.full.macs // 2, drawn(groups), round_to=0)


@pytest.mark.data
@pytest.mark.slow
def test_on_real_images_the_widths_lose_less_than_uniform_ones(resnet20, cifar):
    model, image, data = resnet20, torch.zeros(1, 3, 32, 32), cifar
    groups = find_groups(model, image)
    cost, inner = CostModel(model, groups, image), groups.only(groups.matching(("inner",)))
    criterion = CRITERIA.build("sensitivity", recalibration_images=256, shares=(0.2, 0.4, 0.6, 0.8))
    ranking = criterion.rank(model, inner, data.train.subset(256, seed=0).batches(128))
    losses = {}
    for rule in ("sensitivity", "uniform"):
        widths = ALLOCATIONS.build(rule).widths(inner, cost, cost.full.macs * 7 // 10, ranking)
        cut = copy.deepcopy(resnet20)
        prune(cut, widths, ranking, groups=groups, example_input=image)
        recalibrate(cut, data.train, images=512)
        losses[rule] = evaluate(cut, data.test.subset(500, seed=0)).loss
        print(rule, losses[rule], widths)
    assert losses["sensitivity"] < losses["uniform"]
