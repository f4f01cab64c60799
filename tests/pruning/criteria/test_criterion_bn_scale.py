import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruning.criteria import CRITERIA
from pruning.errors import RankingError
from pruning.finding import find_groups
from pruning.groups import ChannelGroup, ChannelGroups, Slice

FEW = settings(max_examples=30, deadline=None)
scales = st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=6)


def chain(width, normalised=True):
    norm = nn.BatchNorm2d(width) if normalised else nn.Identity()
    return nn.Sequential(nn.Conv2d(3, width, 3), norm, nn.ReLU(), nn.Conv2d(width, 4, 3))


def ranked(model):
    return CRITERIA.build("bn_scale").rank(model, find_groups(model, torch.zeros(1, 3, 8, 8)))


@FEW
@given(scales=scales)
def test_the_score_is_the_absolute_scale(scales):
    model = chain(len(scales))
    model[1].weight.data = torch.tensor(scales)
    assert ranked(model).scores["0"].tolist() == [abs(scale) for scale in scales]


def test_shifts_and_running_statistics_do_not_count():
    model = chain(3)
    model[1].bias.data = torch.tensor([9.0, 0.0, 0.0])
    model[1].running_mean = torch.tensor([0.0, 9.0, 0.0])
    model[1].running_var = torch.tensor([0.0, 0.0, 9.0])
    assert ranked(model).scores["0"].tolist() == [1.0, 1.0, 1.0]


def test_the_scales_before_and_behind_a_depthwise_convolution_add_up():
    model = nn.Sequential(
        nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, groups=2), nn.BatchNorm2d(2), nn.Conv2d(2, 4, 1)
    )
    model[1].weight.data = torch.tensor([1.0, -2.0])
    model[3].weight.data = torch.tensor([-0.5, 0.25])
    assert ranked(model).scores["0"].tolist() == [1.5, 2.25]


def test_a_channel_of_several_positions_adds_their_scales():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(6, 1, 1))
    model[1].weight.data = torch.tensor([1.0, 2.0, -10.0, 20.0])
    assert ranked(model).scores["0"].tolist() == [3.0, 30.0]


def test_other_normalisations_are_not_taken_for_batch_norm():
    each = ((0,), (1,))
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.InstanceNorm2d(2, affine=True), nn.Conv2d(2, 1, 1))
    group = ChannelGroup("0", 2, False, (Slice("0.weight", 0, each),), (Slice("1.weight", 0, each),), ())
    with pytest.raises(RankingError, match="group '0': expected a batch norm, got none"):
        CRITERIA.build("bn_scale").rank(model, ChannelGroups((group,)))


def test_a_group_without_batch_norm_is_an_error_that_names_it():
    with pytest.raises(RankingError, match="criterion 'bn_scale', group '0': expected a batch norm, got none"):
        ranked(chain(3, normalised=False))


def test_a_nan_is_an_error_that_names_group_and_channel():
    model = chain(2)
    model[1].weight.data[1] = math.nan
    with pytest.raises(RankingError, match=r"criterion 'bn_scale', group '0': channels \[1\] have no finite score"):
        ranked(model)
