import copy

import pytest
import torch
from slow_dcp import Coupled, Flat, slow_dcp, with_heads
from small_networks import IMAGE, Residual, batches, chain, pictures, prepared
from torch import nn

from pruning.criteria import CRITERIA
from pruning.criteria.dcp import DCP
from pruning.discrimination.search import reference_width
from pruning.errors import DataError, OptionError, RankingError
from pruning.finding import find_groups
from pruning.groups import ChannelGroup
from pruning.surgery import prune

LARGE = {"learning_rate": 0.1}
"""Steps that move the weights far enough to change picks."""


def data(count=12, size=5):
    return batches(*pictures(count), size)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(3)


def assert_equal(ranking, expected, groups):
    for name in groups:
        order, losses, width, weights = expected[name]
        assert ranking.orders[name].tolist() == order, name
        assert ranking.losses[name].tolist() == pytest.approx(losses, rel=1e-9), name
        assert ranking.fitted_widths[name] == width
        assert ranking.fitted[name].keys() == weights.keys()
        for tensor, value in weights.items():
            torch.testing.assert_close(ranking.fitted[name][tensor], value, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("make", [Residual, chain, Coupled, Flat])
@pytest.mark.parametrize(
    "options",
    [
        {},
        LARGE,
        {"norm": "code", "weight_decay": 0.1, **LARGE},
        {"loss_weight": 0, **LARGE},
        {"reconstruction_weight": 0, **LARGE},
        {"rate": 0.7, "loss_weight": 0.3, "momentum": 0.0, **LARGE},
        {"cache_gib": 0, **LARGE},
    ],
    ids=str,
)
def test_equals_the_algorithm_on_the_whole_network(make, options):
    model, images = prepared(make()), data()
    groups = find_groups(model, IMAGE)
    expected = slow_dcp(model, groups, images, None, **options)
    assert_equal(DCP(**options).rank(model, groups, images), expected, groups)


@pytest.mark.parametrize("options", [LARGE, {"loss_weight": 0.5, "norm": "code", **LARGE}], ids=str)
@pytest.mark.parametrize("places", [("block1",), ("block1", "block2"), ("block2",)])
def test_each_group_is_judged_at_the_first_head_behind_its_readers(places, options):
    model, images = prepared(Coupled()), data()
    heads = with_heads(model, places, weight=0.7)
    groups = find_groups(model, IMAGE)
    ranking = DCP(**options).rank(model, groups, images, heads)
    assert_equal(ranking, slow_dcp(model, groups, images, heads, **options), groups)
    assert any(
        ranking.losses[name].tolist() != DCP(**options).rank(model, groups, images).losses[name].tolist()
        for name in groups
    )


def test_later_groups_see_the_earlier_ones_cut_with_fitted_weights():
    model, images = prepared(Coupled()), data()
    groups = find_groups(model, IMAGE)
    last = list(groups)[-1]
    ranked = DCP(**LARGE).rank(model, groups, images)
    alone = DCP(**LARGE).rank(model, groups.only([last]), images)
    assert ranked.losses[last].tolist() != pytest.approx(alone.losses[last].tolist(), rel=1e-6)


@pytest.mark.parametrize("rate", [0.7, 0.5, 0.25, 0])
def test_all_but_the_floor_of_the_rate_stay(rate):
    def stay(width):
        return reference_width(ChannelGroup("g", width, False, (), (), ()), rate)

    assert stay(90) == {0.7: 27, 0.5: 45, 0.25: 68, 0: 90}[rate]  # 90 · 0.7 is 62.99… in floats
    assert stay(3) == {0.7: 1, 0.5: 2, 0.25: 3, 0: 3}[rate]


@pytest.mark.parametrize("epsilon", [10.0, 0.3, 0.05, 0.01, 1e-12])
def test_epsilon_cuts_where_the_relative_change_of_the_loss_is_first_small(epsilon):
    model, images = prepared(chain()), data()
    groups = find_groups(model, IMAGE)
    ranking = DCP(epsilon=epsilon).rank(model, groups, images)
    for name, curve in ranking.losses.items():
        width = groups[name].width
        if name == next(iter(groups)):
            changes = [abs(curve[t - 1] - curve[t]) / curve[0] for t in range(1, width + 1)]
            first = next((t for t, change in enumerate(changes, start=1) if change <= epsilon), width)
            assert ranking.fitted_widths[name] == first
        short = DCP(epsilon=epsilon, complete=False).rank(model, groups, images)
        assert short.fitted_widths == ranking.fitted_widths
        assert len(short.losses[name]) == 1 + short.fitted_widths[name]


def test_an_incomplete_search_has_the_same_beginning_and_every_width():
    model, images = prepared(Coupled()), data()
    groups = find_groups(model, IMAGE)
    whole = DCP(**LARGE).rank(model, groups, images)
    part = DCP(complete=False, **LARGE).rank(model, groups, images)
    for name, group in groups.items():
        width = whole.fitted_widths[name]
        assert part.orders[name][:width].tolist() == whole.orders[name][:width].tolist()
        assert part.losses[name].tolist() == whole.losses[name][: width + 1].tolist()
        assert sorted(part.orders[name].tolist()) == list(range(group.width))
        for tensor, value in whole.fitted[name].items():
            assert torch.equal(part.fitted[name][tensor], value)


def test_select_leaves_the_network_cut_with_the_fitted_weights():
    model, images = prepared(Coupled()), data()
    groups = find_groups(model, IMAGE)
    network, baseline = copy.deepcopy(model), copy.deepcopy(model)
    ranking = DCP(**LARGE).select(network, baseline, groups, images)
    cut = copy.deepcopy(model)
    widths = ranking.fitted_widths
    prune(cut, widths, ranking, groups=groups, example_input=IMAGE)
    x = images[0][0]
    torch.testing.assert_close(cut.eval()(x), network.eval()(x))
    assert all(torch.equal(a, b) for a, b in zip(baseline.parameters(), model.parameters(), strict=True))


def test_select_takes_the_outputs_of_the_baseline_it_is_given():
    model, images = prepared(chain()), data()
    groups = find_groups(model, IMAGE)
    other = copy.deepcopy(model)
    other[4].weight.data.mul_(2)
    first = DCP(loss_weight=0).select(copy.deepcopy(model), model, groups, images)
    second = DCP(loss_weight=0).select(copy.deepcopy(model), other, groups, images)
    assert first.losses["0"][0] != second.losses["0"][0]


def test_everything_is_as_found_also_after_an_error():
    model, images = prepared(Coupled()).train(), data()
    heads = with_heads(model, ("block1",))
    model.block1.requires_grad_(False)
    groups = find_groups(model, IMAGE)
    images[1] = (images[1][0], images[1][1] + 100)
    modules, tensors = (model, heads.heads), copy.deepcopy((model.state_dict(), heads.heads.state_dict()))
    flags = [(m.training, [p.requires_grad for p in m.parameters()]) for n in modules for m in n.modules()]
    state = torch.get_rng_state()
    network = copy.deepcopy(model)
    with pytest.raises(DataError, match="labels: expected classes 0 to 4, got 10"):
        DCP().select(network, model, groups, images, heads)
    assert [(m.training, [p.requires_grad for p in m.parameters()]) for n in modules for m in n.modules()] == flags
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), model.parameters(), strict=True))
    for module, before in zip(modules, tensors, strict=True):
        assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*model.modules(), *network.modules()])


def test_identical_runs_give_identical_rankings():
    model, images = prepared(Coupled()), data()
    groups = find_groups(model, IMAGE)
    first, second = (DCP().rank(model, groups, images) for _ in range(2))
    for name in groups:
        assert torch.equal(first.losses[name], second.losses[name])
        assert torch.equal(first.orders[name], second.orders[name])


def test_channels_without_a_gradient_are_all_picked_once_in_their_order():
    model, images = prepared(chain()), data()
    model[4].weight.data.zero_()
    ranking = DCP(loss_weight=0, weight_decay=0).rank(model, find_groups(model, IMAGE).only(["0"]), images)
    assert ranking.orders["0"].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("weights", [{}, {"loss_weight": 0}, {"reconstruction_weight": 0}], ids=str)
def test_a_nan_names_group_and_criterion(weights):
    model = prepared(chain())
    model[1].running_var.fill_(torch.nan)
    with pytest.raises(RankingError, match="criterion 'dcp', group '0': expected finite numbers"):
        DCP(**weights).rank(model, find_groups(model, IMAGE), data())


def test_images_takes_the_first_images():
    model, images = prepared(chain()), data(12, 4)
    groups = find_groups(model, IMAGE)
    first, second = DCP(images=8).rank(model, groups, images), DCP().rank(model, groups, images[:2])
    assert all(torch.equal(first.losses[name], second.losses[name]) for name in groups)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.5, "epsilon": 0.1}, "expected rate or epsilon, got both, 0.5 and 0.1"),
        ({"epsilon": 0}, "epsilon: expected above 0, got 0"),
        ({"rate": 1.0}, "rate: expected at least 0, below 1, got 1.0"),
        ({"norm": "l3"}, "norm: expected 'frobenius' or 'code', got 'l3'"),
        ({"loss_weight": 0, "reconstruction_weight": 0}, "expected above 0 where loss_weight is 0"),
        ({"images": 0}, "images: expected at least 1, got 0"),
    ],
)
def test_an_option_that_makes_no_sense_is_one_line(options, message):
    with pytest.raises(OptionError, match=message):
        CRITERIA.build("dcp", **options)


def test_a_reader_that_runs_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.make, self.read, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

        def forward(self, x):
            x = self.make(x)
            return self.fc((self.read(x) + self.read(-x)).mean((2, 3)))

    model = Twice().double()
    with pytest.raises(ValueError, match="'read': expected a layer that runs once, got 2 runs"):
        DCP().rank(model, find_groups(model, IMAGE), data())


@pytest.mark.parametrize("make", [chain, Flat])
@pytest.mark.parametrize("options", [{}, {"norm": "code", "reconstruction_weight": 2}], ids=str)
def test_fast_mode_is_exact_for_reconstruction_in_equal_batches(make, options):
    model, images = prepared(make()), 3 * [pictures()]  # then L is the quadratic function that fast mode follows
    groups = find_groups(model, IMAGE)
    exact, fast = (
        DCP(loss_weight=0, mode=m, **LARGE, **options).rank(model, groups, images) for m in ("exact", "fast")
    )
    for name in groups:
        assert fast.orders[name].tolist() == exact.orders[name].tolist()
        assert fast.losses[name].tolist() == pytest.approx(exact.losses[name].tolist(), rel=1e-8, abs=1e-12)
        for tensor, value in exact.fitted[name].items():
            torch.testing.assert_close(fast.fitted[name][tensor], value, rtol=1e-7, atol=1e-9)


def test_fast_mode_with_a_pass_for_every_pick_and_no_steps_is_exact():
    model, images = prepared(chain()), data()
    groups = find_groups(model, IMAGE)
    options = {"learning_rate": 0, "norm": "code"}
    exact = DCP(**options).rank(model, groups, images)
    fast = DCP(mode="fast", growth=1, **options).rank(model, groups, images)
    for name in groups:
        assert fast.orders[name].tolist() == exact.orders[name].tolist()
        assert fast.losses[name][:-1].tolist() == pytest.approx(exact.losses[name][:-1].tolist(), rel=1e-8)


def test_fast_mode_searches_exactly_where_readers_stand_behind_each_other():
    model, images = prepared(Coupled()), data()
    groups = find_groups(model, IMAGE).only(["stem"])
    exact, fast = (DCP(mode=mode).rank(model, groups, images) for mode in ("exact", "fast"))
    assert torch.equal(fast.losses["stem"], exact.losses["stem"])


def test_fast_mode_stops_at_epsilon_and_leaves_the_network_as_found():
    model, images = prepared(chain()), data()
    before = copy.deepcopy(model.state_dict())
    ranking = DCP(mode="fast", epsilon=0.05, share=2, complete=False).rank(model, find_groups(model, IMAGE), images)
    assert ranking.fitted_widths["0"] == len(ranking.losses["0"]) - 1 < 6
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
