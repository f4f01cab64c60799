import torch
from torch import nn

from pruning.criteria import CRITERIA
from pruning.groups import ChannelGroup, ChannelGroups, Slice


def group(name, width=32):
    each = tuple((channel,) for channel in range(width))
    return ChannelGroup(name, width, False, (Slice("0.weight", 0, each),), (), (Slice("1.weight", 1, each),))


def orders(*names, seed=0):
    groups = ChannelGroups(tuple(group(name) for name in names))
    ranking = CRITERIA.build("random", seed=seed).rank(nn.Sequential(), groups)
    return {name: order.tolist() for name, order in ranking.orders.items()}


def test_the_same_seed_gives_the_same_order_whatever_the_global_state():
    torch.manual_seed(1)
    first = orders("a", seed=7)
    torch.manual_seed(2)
    assert orders("a", seed=7) == first


def test_another_seed_gives_another_order():
    assert orders("a", seed=0) != orders("a", seed=1)


def test_groups_of_one_width_get_different_orders():
    both = orders("a", "b")
    assert both["a"] != both["b"]


def test_a_group_s_order_does_not_depend_on_the_other_groups():
    assert orders("b", "a")["a"] == orders("a")["a"]


def test_every_channel_is_equally_likely_to_be_first():
    firsts = [orders("a", seed=seed)["a"][0] for seed in range(640)]
    counts = torch.bincount(torch.tensor(firsts), minlength=32)
    chi_square = float(((counts - 20.0) ** 2 / 20.0).sum())
    assert chi_square < 75  # 31 degrees of freedom: a fair draw is above with probability 2e-5
