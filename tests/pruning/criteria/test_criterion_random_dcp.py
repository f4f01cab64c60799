import copy

import pytest
import torch
from slow_dcp import Coupled, slow_dcp, with_heads
from small_networks import IMAGE, batches, pictures, prepared

from pruning.criteria import CRITERIA
from pruning.criteria.dcp import DCP
from pruning.criteria.random_dcp import RandomDCP
from pruning.errors import OptionError, RankingError
from pruning.finding import find_groups


@pytest.fixture
def network():
    torch.manual_seed(3)
    return prepared(Coupled())


def data():
    return batches(*pictures(12), 5)


@pytest.mark.parametrize("options", [{}, {"rate": 0.7, "learning_rate": 0.1}, {"loss_weight": 0}], ids=str)
def test_fits_drawn_channels_as_the_algorithm_on_the_whole_network_does(network, options):
    groups, images = find_groups(network, IMAGE), data()
    heads = with_heads(network, ("block1",))
    ranking = RandomDCP(seed=4, **options).rank(network, groups, images, heads)
    drawn = CRITERIA.build("random", seed=4).rank(network, groups).orders
    slow = slow_dcp(network, groups, images, heads, orders={n: o.tolist() for n, o in drawn.items()}, **options)
    for name, (order, losses, width, weights) in slow.items():
        assert ranking.orders[name].tolist() == order == drawn[name].tolist()
        assert ranking.losses[name].tolist() == pytest.approx(losses, rel=1e-9)
        assert ranking.fitted_widths[name] == width
        for tensor, value in weights.items():
            torch.testing.assert_close(ranking.fitted[name][tensor], value, rtol=1e-8, atol=1e-10)


def test_fast_mode_takes_the_drawn_channels_too(network):
    groups, images = find_groups(network, IMAGE), data()
    drawn = CRITERIA.build("random", seed=4).rank(network, groups).orders
    exact, fast = (RandomDCP(seed=4, mode=mode).rank(network, groups, images) for mode in ("exact", "fast"))
    for name, order in drawn.items():
        assert fast.orders[name].tolist() == order.tolist()
    first = next(iter(drawn))  # nothing is cut in front of it
    assert fast.losses[first][0].item() == pytest.approx(exact.losses[first][0].item())
    assert any(not torch.equal(fast.losses[name], exact.losses[name]) for name in drawn)


def test_another_seed_draws_other_channels(network):
    groups, images = find_groups(network, IMAGE), data()
    orders = [[o.tolist() for o in RandomDCP(seed=s).rank(network, groups, images).orders.values()] for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_an_incomplete_search_keeps_the_drawn_order(network):
    groups, images = find_groups(network, IMAGE), data()
    short, whole = (RandomDCP(complete=complete).rank(network, groups, images) for complete in (False, True))
    for name in groups:
        assert torch.equal(short.orders[name], whole.orders[name])
        assert len(short.losses[name]) == 1 + short.fitted_widths[name]


def test_dcp_finds_a_smaller_loss_than_the_draw(network):
    first = find_groups(network, IMAGE).only(["stem"])
    images = data()
    drawn, chosen = (c.rank(network, first, images).losses["stem"] for c in (RandomDCP(), DCP()))
    assert chosen[1] < drawn[1]


def test_select_cuts_in_place(network):
    groups, images = find_groups(network, IMAGE), data()
    cut = copy.deepcopy(network)
    ranking = RandomDCP().select(cut, network, groups, images)
    group = groups["stem"]
    gone = sorted(set(range(4)).difference(ranking.keep("stem", ranking.fitted_widths["stem"])))
    assert len(gone) == 2
    for part in group.readers:
        weight = cut.get_parameter(part.tensor)
        assert bool((weight.index_select(part.axis, torch.tensor(gone)) == 0).all())


def test_a_nan_names_the_criterion_and_options_are_checked(network):
    network.stem.weight.data[0] = torch.nan
    with pytest.raises(RankingError, match="criterion 'random_dcp', group 'stem': expected finite numbers, got a loss"):
        RandomDCP().rank(network, find_groups(network, IMAGE), data())
    with pytest.raises(OptionError, match="epsilon: expected above 0, got -1"):
        CRITERIA.build("random_dcp", epsilon=-1)
