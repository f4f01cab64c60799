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


def ranked(filters):
    maker = nn.Linear(len(filters[0]), len(filters), bias=False)
    maker.weight.data = torch.tensor(filters)
    each = tuple((channel,) for channel in range(len(filters)))
    group = ChannelGroup("0", len(filters), False, (Slice("0.weight", 0, each),), (), (Slice("1.weight", 1, each),))
    return CRITERIA.build("l2").rank(nn.Sequential(maker, nn.Linear(len(filters), 2)), ChannelGroups((group,)))


@FEW
@given(filters=matrices())
def test_the_score_is_the_euclidean_norm(filters):
    expected = [math.hypot(*row) for row in filters]
    assert ranked(filters).scores["0"].tolist() == pytest.approx(expected, rel=1e-12)


@FEW
@given(filters=matrices(), angle=st.floats(0, 6))
def test_a_rotation_of_the_inputs_changes_nothing(filters, angle):
    plane = [[*row, 0.0][:2] for row in filters]
    cos, sin = math.cos(angle), math.sin(angle)
    turned = [[cos * x - sin * y, sin * x + cos * y] for x, y in plane]
    assert ranked(turned).scores["0"].tolist() == pytest.approx(ranked(plane).scores["0"].tolist(), abs=1e-5)  # float32


def test_one_large_weight_outweighs_many_small_ones_unlike_l1():
    assert ranked([[3.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]).orders["0"].tolist() == [0, 1]


def test_an_infinite_weight_is_an_error_that_names_group_and_channel():
    with pytest.raises(RankingError, match=r"criterion 'l2', group '0': channels \[0\] have no finite score"):
        ranked([[math.inf], [1.0]])
