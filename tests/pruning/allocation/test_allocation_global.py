import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruning.allocation import ALLOCATIONS
from pruning.cost import CostModel
from pruning.errors import OptionError, PolicyError, RankingError
from pruning.finding import find_groups
from pruning.ranking import NestedRanking

IMAGE = torch.zeros(1, 3, 12, 12)
FEW = settings(max_examples=30, deadline=None)


def build():
    model = nn.Sequential(
        *(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 25, 3), nn.ReLU(), nn.Conv2d(25, 10, 3)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 10)),
    )
    groups = find_groups(model, IMAGE)
    return groups, CostModel(model, groups, IMAGE)


GROUPS, COST = build()


def ranking_of(seed=0, **factors):
    generator = torch.Generator().manual_seed(seed)
    draws = {name: torch.rand(group.width, generator=generator, dtype=torch.float64) for name, group in GROUPS.items()}
    return NestedRanking.from_scores("drawn", {name: factors.get(f"g{name}", 1) * draw for name, draw in draws.items()})


def widths(ranking, macs, **options):
    return ALLOCATIONS.build("global", **options).widths(GROUPS, COST, macs, ranking)


def above(ranking, threshold, norm, minimum_share=0.1):
    """The definition: how many scores reach the threshold."""
    kept = {}
    for name, scores in ranking.scores.items():
        values = [value / norm(scores.tolist()) for value in scores.tolist()]
        floor = next(width for width in range(1, len(values) + 1) if width >= minimum_share * len(values))
        kept[name] = max(floor, sum(value >= threshold for value in values))
    return kept


NORMS = {
    "mean": lambda values: sum(map(abs, values)) / len(values),
    "max": lambda values: max(map(abs, values)),
    "l2": lambda values: sum(value * value for value in values) ** 0.5,
    "none": lambda values: 1.0,
}


@FEW
@given(seed=st.integers(0, 99), norm=st.sampled_from(sorted(NORMS)), threshold=st.floats(0, 1.5))
def test_the_cost_of_a_threshold_gives_back_the_widths_that_it_leaves(seed, norm, threshold):
    ranking = ranking_of(seed, g2=3.0)
    expected = above(ranking, threshold, NORMS[norm])
    assert widths(ranking, COST.cost(expected).macs, normalise=norm) == expected


@FEW
@given(
    seed=st.integers(0, 99),
    factor=st.sampled_from([0.25, 8.0]),
    sign=st.sampled_from([1, -1]),
    norm=st.sampled_from(["mean", "max", "l2"]),
)
def test_normalised_scores_do_not_feel_the_scale_of_a_group(seed, factor, sign, norm):
    plain = {name: sign * scores for name, scores in ranking_of(seed).scores.items()}
    scaled = plain | {"2": factor * plain["2"]}
    first, second = (
        widths(NestedRanking.from_scores("signed", scores), COST.full.macs // 2, normalise=norm)
        for scores in (plain, scaled)
    )
    assert first == second


def test_scores_as_they_are_take_from_the_group_with_the_low_ones():
    others_whole = {"0": 20, "2": 10, "4": 10}
    assert widths(ranking_of(g2=0.001), COST.cost(others_whole).macs, normalise="none") == others_whole
    eighth = widths(ranking_of(g2=0.001), COST.full.macs // 8, normalise="none")
    assert eighth["2"] == 3  # the floor


def test_negative_scores_keep_their_order():
    scores = {name: -torch.arange(1, width + 1, dtype=torch.float64) for name, width in GROUPS.widths.items()}
    scores["2"][5:] -= 1000  # divided by a negative mean these would come first
    few = COST.cost({"0": 2, "2": 5, "4": 1}).macs
    assert widths(NestedRanking.from_scores("negative", scores), few)["2"] == 5


def test_a_group_of_zeros_falls_to_the_floor_and_no_lower():
    scores = ranking_of().scores | {"2": torch.zeros(25, dtype=torch.float64)}
    assert widths(NestedRanking.from_scores("dead", scores), COST.full.macs // 8)["2"] == 3


def test_the_floor_is_exact_for_shares_that_floats_miss():
    scores = {name: torch.zeros(width, dtype=torch.float64) for name, width in GROUPS.widths.items()}
    scores["4"] += 1
    floor = {"0": 6, "2": 7, "4": 10}  # 0.28 · 25 is 7, in floats 7.000000000000001
    kept = widths(NestedRanking.from_scores("one", scores), COST.cost(floor).macs, minimum_share=0.28)
    assert kept == floor


def test_the_floor_bounds_the_budget():
    at_floor = COST.cost({"0": 10, "2": 13, "4": 5}).macs
    with pytest.raises(PolicyError, match=f"budget: expected {at_floor} to {COST.full.macs} MACs"):
        widths(ranking_of(), at_floor - 1, minimum_share=0.5)


@pytest.mark.parametrize("percent", [20, 50, 90])
@pytest.mark.parametrize("round_to", [1, 4])
def test_the_budget_is_met(percent, round_to):
    macs = COST.full.macs * percent // 100
    kept = widths(ranking_of(), macs, round_to=round_to)
    assert COST.cost(kept).macs <= macs
    assert round_to > 1 or COST.cost(kept).macs >= 0.99 * macs
    assert all(width % round_to == 0 or width == GROUPS[name].width for name, width in kept.items())


def test_a_ranking_without_scores_is_an_error():
    orders = {name: torch.arange(width) for name, width in GROUPS.widths.items()}
    with pytest.raises(
        RankingError, match="allocation 'global', group '0': expected scores, got ranking 'order' without"
    ):
        widths(NestedRanking("order", orders), COST.full.macs)
    with pytest.raises(RankingError, match="allocation 'global', group '0': expected scores, got no ranking"):
        widths(None, COST.full.macs)


def test_options_that_do_not_exist_are_errors():
    with pytest.raises(OptionError, match="normalise: unknown norm 'maxx'; did you mean 'max'"):
        ALLOCATIONS.build("global", normalise="maxx")
    with pytest.raises(OptionError, match=r"minimum_share: expected 0 to 1, got 1\.5"):
        ALLOCATIONS.build("global", minimum_share=1.5)
