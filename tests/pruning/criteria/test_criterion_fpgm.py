import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruning.criteria import CRITERIA
from pruning.groups import ChannelGroup, ChannelGroups, Slice

FEW = settings(max_examples=30, deadline=None)


@st.composite
def matrices(draw):
    fan_in = draw(st.integers(1, 4))
    row = st.lists(st.floats(-5, 5, width=32), min_size=fan_in, max_size=fan_in)
    return draw(st.lists(row, min_size=2, max_size=6))


def ranked(filters):
    maker = nn.Linear(len(filters[0]), len(filters), bias=False, dtype=torch.float64)
    maker.weight.data = torch.tensor(filters, dtype=torch.float64)
    each = tuple((channel,) for channel in range(len(filters)))
    group = ChannelGroup("0", len(filters), False, (Slice("0.weight", 0, each),), (), (Slice("1.weight", 1, each),))
    return CRITERIA.build("fpgm").rank(nn.Sequential(maker, nn.Linear(len(filters), 2)), ChannelGroups((group,)))


def scores(filters):
    return ranked(filters).scores["0"].tolist()


@FEW
@given(filters=matrices())
def test_the_score_is_the_sum_of_distances_to_the_other_filters(filters):
    expected = [math.fsum(math.dist(a, b) for b in filters) for a in filters]
    assert scores(filters) == pytest.approx(expected, rel=1e-12)


@FEW
@given(filters=matrices(), shift=st.floats(-5, 5, width=32))
def test_a_common_shift_changes_nothing(filters, shift):
    moved = [[weight + shift for weight in row] for row in filters]
    assert scores(moved) == pytest.approx(scores(filters), abs=1e-12)


@FEW
@given(filters=matrices(), data=st.data())
def test_a_score_moves_with_its_filter(filters, data):
    order = data.draw(st.permutations(range(len(filters))))
    before = scores(filters)
    assert scores([filters[channel] for channel in order]) == pytest.approx([before[channel] for channel in order])


def test_the_filter_nearest_to_the_geometric_median_goes_first():
    corners = [[1.0, 1.0], [-1.0, 1.0], [0.1, 0.0], [1.0, -1.0], [-1.0, -1.0]]
    assert ranked(corners).orders["0"].tolist()[-1] == 2


def test_near_equal_filters_far_from_the_origin_are_told_apart():
    # 64 filters: from 25 on, the default form of cdist multiplies matrices and loses these distances altogether.
    far = [[1e4 + 1e-5 * channel * channel] for channel in range(64)]
    expected = [math.fsum(math.dist(a, b) for b in far) for a in far]
    assert scores(far) == pytest.approx(expected, rel=1e-9)
