import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruning.criteria import CRITERIA
from pruning.errors import RankingError
from pruning.groups import ChannelGroup, ChannelGroups, Slice

FEW = settings(max_examples=30, deadline=None)
weights = st.floats(-8, 8, allow_nan=False, width=32)


@st.composite
def matrices(draw):
    fan_in = draw(st.integers(1, 4))
    return draw(st.lists(st.lists(weights, min_size=fan_in, max_size=fan_in), min_size=2, max_size=5))


def network(filters):
    maker = nn.Linear(len(filters[0]), len(filters), bias=False)
    maker.weight.data = torch.tensor(filters)
    return nn.Sequential(maker, nn.Linear(len(filters), 2))


def group(width, makers=("0.weight",)):
    each = tuple((channel,) for channel in range(width))
    return ChannelGroup(
        "0", width, False, tuple(Slice(name, 0, each) for name in makers), (), (Slice("1.weight", 1, each),)
    )


def ranked(filters, name="l1"):
    return CRITERIA.build(name).rank(network(filters), ChannelGroups((group(len(filters)),)))


@FEW
@given(filters=matrices())
def test_the_score_is_the_sum_of_absolute_weights(filters):
    expected = [math.fsum(abs(weight) for weight in row) for row in filters]
    assert ranked(filters).scores["0"].tolist() == pytest.approx(expected, rel=1e-12)


@FEW
@given(filters=matrices(), factor=st.sampled_from([-4.0, -1.0, 0.5, 2.0]))
def test_scaling_every_weight_scales_the_scores_and_keeps_the_order(filters, factor):
    scaled = ranked([[factor * weight for weight in row] for row in filters])
    assert scaled.scores["0"].tolist() == pytest.approx((abs(factor) * ranked(filters).scores["0"]).tolist())
    assert scaled.orders["0"].tolist() == ranked(filters).orders["0"].tolist()


def test_the_largest_filter_is_kept_and_ties_go_to_the_lower_channel():
    ranking = ranked([[1.0, -1.0], [3.0, 0.0], [-2.0, 0.0], [0.5, 0.0]])
    assert ranking.orders["0"].tolist() == [1, 0, 2, 3]
    assert ranking.keep("0", 2) == (0, 1)


def test_filters_of_all_makers_count():
    model = nn.ModuleDict({"0": nn.Linear(1, 2, bias=False), "1": nn.Linear(1, 2, bias=False)})
    model["0"].weight.data = torch.tensor([[1.0], [2.0]])
    model["1"].weight.data = torch.tensor([[10.0], [-20.0]])
    both = group(2, makers=("0.weight", "1.weight"))
    assert CRITERIA.build("l1").rank(model, ChannelGroups((both,))).scores["0"].tolist() == [11.0, 22.0]


def test_half_precision_weights_are_summed_in_full_precision():
    model = network([[256.0] * 512, [256.5] + [256.0] * 511]).half()  # both sums are beyond the range of float16
    scores = CRITERIA.build("l1").rank(model, ChannelGroups((group(2),))).scores["0"]
    assert scores.dtype == torch.float64
    assert scores.tolist() == [131072.0, 131072.5]


def test_weight_sum_is_another_name_for_it():
    assert CRITERIA.get("weight_sum") is CRITERIA.get("l1")


def test_a_nan_is_an_error_that_names_group_and_channel():
    with pytest.raises(RankingError, match=r"criterion 'l1', group '0': channels \[1\] have no finite score"):
        ranked([[1.0], [math.nan]])
