import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from slow_reconstruction import adding, contributions, removal, seen_rows, stacked
from small_networks import IMAGE, Residual, Twice, batches, chain, pictures, prepared
from torch import nn

from pruning import load_ranking, prune
from pruning.criteria import CRITERIA
from pruning.criteria.thinet import adding_order, removal_order
from pruning.errors import OptionError, RankingError
from pruning.finding import find_groups
from pruning.groups import ChannelGroup, ChannelGroups, Slice
from pruning.refitting import ReconstructionRanking


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Unusual(nn.Module):
    """Stride, dilation, uneven kernels and another padding; a depthwise layer between; tokens; a concatenation."""

    def __init__(self):
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1, groups=5)
        self.strided = nn.Conv2d(5, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False)
        self.other = nn.Conv2d(5, 3, 3, padding="same", padding_mode="circular")
        self.joined = nn.Conv2d(7, 6, 1)
        self.tokens, self.fc = nn.Linear(6, 4), nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.depthwise(torch.relu(self.first(x))))
        strided, other = torch.relu(self.strided(x)), torch.relu(self.other(x))
        x = torch.cat([strided, other[:, :, ::2, 1:-1]], dim=1)
        x = torch.relu(self.joined(x)).flatten(2).transpose(1, 2)
        return self.fc(torch.relu(self.tokens(x)).mean(1))


def ranked(model, data, groups=None, **options):
    return CRITERIA.build("thinet", **options).rank(model, groups or find_groups(model, IMAGE), data)


def order(ranking, group):
    """Return the channels in the order in which wider sets take them in."""
    sets = [set()] + [set(ranking.keep(group, width)) for width in range(1, len(ranking.steps[group]) + 1)]
    return [next(iter(more - less)) for less, more in pairwise(sets)]


@pytest.mark.parametrize("build", [chain, Residual, Unusual])
@pytest.mark.parametrize(("search", "slow"), [("remove", removal), ("add", adding)])
def test_the_order_is_that_of_the_loops_over_all_rows(build, search, slow):
    model, (images, labels) = prepared(build()), pictures()
    groups = find_groups(model, IMAGE)
    ranking = ranked(model, batches(images, labels, 5), points_per_image=None, search=search)
    assert len(groups) > 1
    for name, group in groups.items():
        x = stacked(model, group, images)
        assert order(ranking, name) == slow(x), name
        assert ranking.scores[name].tolist() == pytest.approx((x**2).sum(axis=0).tolist(), rel=1e-9)


@pytest.mark.parametrize(("fast", "slow"), [(removal_order, removal), (adding_order, adding)])
@pytest.mark.parametrize("channels", [1, 2, 7, 30])
def test_gram_and_rows_give_the_same_order(fast, slow, channels):
    rng = np.random.default_rng(channels)
    x = rng.standard_normal((200, 4)) @ rng.standard_normal((4, channels)) + rng.standard_normal((200, channels))
    assert fast(torch.from_numpy(x.T @ x)).tolist() == slow(x)


@pytest.mark.parametrize("build", [chain, Residual, Unusual])
def test_the_factors_are_the_least_squares_fit_of_each_reader_s_output_at_any_width(build):
    model, (images, labels) = prepared(build()), pictures()
    groups = find_groups(model, IMAGE)
    ranking = ranked(model, [(images, labels)], points_per_image=None, ridge=1e-12)
    for name, group in groups.items():
        for width in range(1, group.width):
            kept, weights = list(ranking.keep(name, width)), ranking.weights(model, groups, {name: width})
            for part in group.readers:
                x = contributions(model, part, images)
                factors = np.linalg.lstsq(x[:, kept], x.sum(axis=1), rcond=None)[0]
                expected = model.get_parameter(part.tensor).detach().clone()
                for channel, factor in zip(kept, factors, strict=True):
                    expected[:, list(part.positions[channel])] *= factor
                torch.testing.assert_close(weights[part.tensor], expected, rtol=1e-6, atol=1e-8)
    assert ranking.weights(model, groups, groups.widths) == {}


def test_two_groups_in_front_of_one_layer_both_give_it_factors():
    model, data = prepared(Unusual()), [pictures()]
    groups = find_groups(model, IMAGE)
    ranking = ranked(model, data)
    both = ranking.weights(model, groups, {"strided": 2, "other": 1})["joined.weight"]
    first = ranking.weights(model, groups, {"strided": 2})["joined.weight"]
    second = ranking.weights(model, groups, {"other": 1})["joined.weight"]
    torch.testing.assert_close(both, torch.cat([first[:, :4], second[:, 4:]], dim=1))
    assert not torch.allclose(both, model.joined.weight)


def test_a_linear_layer_that_reads_two_groups_is_seen_by_each_at_its_own_inputs():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3), nn.Linear(9, 6)

        def forward(self, x):
            return self.fc(torch.cat([self.left(x).relu().mean((2, 3)), self.right(x).relu().mean((2, 3))], dim=1))

    model, (images, labels) = prepared(Joined()), pictures()
    ranking = ranked(model, batches(images, labels, 5))
    for name, group in find_groups(model, IMAGE).items():
        x = contributions(model, group.readers[0], images)
        assert ranking.grams[name]["fc.weight"].numpy() == pytest.approx(x.T @ x / len(images))


def with_a_twin(model):
    """Make channel 4 of the first layer the same as channel 1."""
    with torch.no_grad():
        for tensor in (*model[0].parameters(), *model[1].state_dict().values()):
            if tensor.dim():
                tensor[4] = tensor[1]
        model[4].weight[:, 4] = model[4].weight[:, 1]
    return model


def test_of_two_equal_channels_one_takes_over_for_both():
    model, (images, labels) = with_a_twin(prepared(chain())), pictures()
    groups, before = find_groups(model, IMAGE), model.eval()(images)
    ranking = ranked(model, [(images, labels)], search="add")
    assert ranking.keep("0", 5) == (0, 1, 2, 3, 5)
    weight = ranking.weights(model, groups, {"0": 5})["4.weight"]
    factors = (weight[:, :4] / model[4].weight[:, :4]).detach()
    torch.testing.assert_close(factors[:, 1], torch.full_like(factors[:, 1], 2), rtol=1e-4, atol=0)
    torch.testing.assert_close(factors[:, [0, 2, 3]], torch.ones_like(factors[:, [0, 2, 3]]), rtol=1e-4, atol=0)
    prune(model, {"0": 5}, ranking, groups=groups, example_input=IMAGE)
    torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-5)


def test_removal_takes_the_last_of_two_equal_channels_first():
    model, data = with_a_twin(prepared(chain())), [pictures()]
    for points in (None, 3):
        found = order(ranked(model, data, points_per_image=points), "0")
        assert found.index(1) < found.index(4)


def test_channels_that_cancel_go_together():
    x = torch.tensor([[5.0, 2.0, -5.0, 1.0], [3.0, 2.0, -3.0, 0.0], [1.0, -2.0, -1.0, 9.0]]).double()
    gram = x.T @ x
    found = removal_order(gram + torch.diag(torch.tensor([0, 500.0, 0, 500.0]).double()))
    assert found.tolist()[2:] == [0, 2]


def test_equal_channels_keep_the_lower_index():
    gram = torch.ones(4, 4).double()
    for search in (removal_order, adding_order):
        assert search(gram).tolist() == [0, 1, 2, 3]
        assert search(0 * gram).tolist() == [0, 1, 2, 3]
        assert search(torch.eye(4).double()).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("search", ["remove", "add"])
def test_a_dead_channel_goes_first_and_its_weights_stay_as_they_are(search):
    model, data = prepared(chain()), [pictures()]
    model[1].weight.data[2], model[1].bias.data[2] = 0, -1
    groups = find_groups(model, IMAGE)
    ranking = ranked(model, data, search=search)
    assert order(ranking, "0")[-1] == 2
    assert ranking.scores["0"][2] == 0
    dead = type(ranking)("thinet", {"0": torch.tensor([3, 1, 2, 4, 5, 6])}, {}, ranking.grams, **KIND)
    weight = dead.weights(model, groups, {"0": 1})["4.weight"]
    assert torch.equal(weight, model[4].weight)
    weight = dead.weights(model, groups, {"0": 3})["4.weight"]
    assert bool(weight.isfinite().all())
    torch.testing.assert_close(weight[:, 2], model[4].weight[:, 2])


KIND = {"whole_channels": True, "ridge": 1e-6}


def test_a_common_scale_of_the_images_of_a_linear_network_changes_no_order():
    model, (images, labels) = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 4, 3)).double(), pictures()
    first, second = (ranked(model, [(scale * images, labels)], points_per_image=None) for scale in (1, 1e-3))
    assert order(first, "0") == order(second, "0")
    one, other = (ranking.weights(model, find_groups(model, IMAGE), {"0": 3}) for ranking in (first, second))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("filters", ["all", "drawn"])
def test_sampled_rows_do_not_depend_on_the_batches(filters):
    model, (images, labels) = prepared(Residual()), pictures()
    whole = ranked(model, [(images, labels)], points_per_image=4, filters=filters)
    for data in (batches(images, labels, 5), batches(images, labels, 1)[::-1]):
        other = ranked(model, data, points_per_image=4, filters=filters)
        for name, scores in whole.scores.items():
            assert other.scores[name].tolist() == pytest.approx(scores.tolist(), rel=1e-9)
            assert order(other, name) == order(whole, name)


@pytest.mark.parametrize("filters", ["all", "drawn"])
def test_sampled_rows_have_the_mean_of_all(filters):
    model, data = prepared(Residual()), [pictures(20)]
    exact = ranked(model, data, points_per_image=None)
    many = ranked(model, data, points_per_image=3000, filters=filters, seed=1)
    if filters == "all":  # no layer has as many places
        assert all(torch.equal(many.scores[name], scores) for name, scores in exact.scores.items())
    for name, grams in exact.grams.items():
        for tensor, gram in grams.items():
            torch.testing.assert_close(many.grams[name][tensor], gram, rtol=0.1, atol=0.02 * float(gram.diag().mean()))


def test_drawn_rows_are_rows_of_the_layer():
    model, (images, labels) = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 3, padding=1)).double(), pictures(1)
    x = contributions(model, find_groups(model, IMAGE)["0"].readers[0], images)
    gram = ranked(model, [(images, labels)], points_per_image=1, filters="drawn").grams["0"]["1.weight"] / 3
    assert any(np.allclose(np.outer(row, row), gram) for row in x)
    gram = ranked(model, [(images, labels)], points_per_image=1).grams["0"]["1.weight"]
    assert any(np.allclose(rows.T @ rows, gram) for rows in x.reshape(-1, 3, 2))


def test_a_layer_with_few_places_is_seen_whole():
    model, (images, labels) = prepared(chain()), pictures()
    few, every = (ranked(model, [(images, labels)], points_per_image=points) for points in (4, None))
    assert torch.equal(few.scores["0"], every.scores["0"])  # 2 × 2 places
    assert torch.equal(few.scores["4"], every.scores["4"])  # behind the pool
    assert not torch.equal(ranked(model, [(images, labels)], points_per_image=3).scores["0"], every.scores["0"])


def test_a_layer_that_is_used_twice_counts_both_times():
    model, (images, labels) = prepared(Twice()), pictures()
    groups = find_groups(model, IMAGE)
    (name, group), *_ = groups.items()
    part = next(part for part in group.readers if part.tensor == "second.weight")
    assert len(seen_rows(model, part, images)) == 2 * 12 * 64
    x = contributions(model, part, images) / np.sqrt(2 * 12 * 64)
    found = ranked(model, batches(images, labels, 5), points_per_image=None).grams[name]["second.weight"]
    assert found.numpy() == pytest.approx(x.T @ x)


def test_many_rows_are_taken_in_parts_with_the_same_sum(monkeypatch):
    model, data = prepared(Unusual()), [pictures()]
    for options in ({"points_per_image": None}, {"filters": "drawn"}):
        whole = ranked(model, data, **options)
        with monkeypatch.context() as patch:
            patch.setattr("pruning.reconstruction._ENTRIES_AT_ONCE", 1000)
            parts = ranked(model, data, **options)
        for name, scores in whole.scores.items():
            torch.testing.assert_close(parts.scores[name], scores)


def test_every_option_changes_something():
    model, (images, labels) = prepared(Residual()), pictures(16)
    groups, data = find_groups(model, IMAGE), [(images, labels)]
    plain = ranked(model, data)
    for options in ({"images": 8}, {"points_per_image": 5}, {"filters": "drawn"}, {"seed": 1}):
        assert not torch.equal(ranked(model, data, **options).scores["stem"], plain.scores["stem"]), options
    assert torch.equal(
        ranked(model, [(images[:8], labels[:8])]).scores["stem"], ranked(model, data, images=8).scores["stem"]
    )
    torch.manual_seed(1)
    other = prepared(chain())
    assert order(ranked(other, data, search="add"), "0") != order(ranked(other, data), "0")
    assert ranked(model, data, compensate=False).weights(model, groups, {"stem": 2}) == {}
    near, far = (ranked(model, data, ridge=ridge).weights(model, groups, {"stem": 2}) for ridge in (1e-6, 1e6))
    torch.testing.assert_close(far["conv1.weight"], model.conv1.weight.detach(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(near["conv1.weight"], model.conv1.weight)


def test_a_pruned_network_has_the_fitted_weights_also_from_a_file(tmp_path):
    model, (images, labels) = prepared(Residual()), pictures()
    groups, widths = find_groups(model, IMAGE), {"stem": 2, "conv1": 2}
    ranking = ranked(model, [(images, labels)])
    ranking.save(tmp_path / "ranking.safetensors")
    again = load_ranking(tmp_path / "ranking.safetensors")
    assert isinstance(again, ReconstructionRanking)
    cuts = []
    for one in (ranking, again):
        cut = copy.deepcopy(model)
        kept = prune(cut, widths, one, groups=groups, example_input=IMAGE)
        cuts.append(cut)
        expected = ranking.weights(model, groups, widths)["conv1.weight"][list(kept["conv1"])][:, list(kept["stem"])]
        assert torch.equal(cut.conv1.weight, expected)
    assert torch.equal(cuts[0](images), cuts[1](images))
    assert all(torch.equal(again.scores[name], scores) for name, scores in ranking.scores.items())


def test_a_group_that_is_not_read_keeps_its_weights_and_scores_zero():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.head = chain(), nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1))

        def forward(self, x):
            return self.main(x) + (self.head(x).mean((2, 3)) if self.training else 0)

    model = prepared(Auxiliary())
    ranking = ranked(model, [pictures()])
    assert ranking.scores["head.0"].tolist() == [0.0] * 4
    assert ranking.keep("head.0", 2) == (0, 1)
    assert ranking.weights(model, find_groups(model, IMAGE), {"head.0": 2}) == {}


def test_a_nan_is_an_error_that_names_group_and_channel():
    model = prepared(chain())
    model[4].weight.data[:, 1] = torch.nan
    with pytest.raises(RankingError, match=r"criterion 'thinet', group '0': channels \[1\] have no finite score"):
        ranked(model, [pictures()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "criterion 'thinet', images: expected at least 1, got 0"),
        ({"points_per_image": 0}, "criterion 'thinet', points_per_image: expected at least 1, got 0"),
        ({"filters": "some"}, "criterion 'thinet', filters: expected all or drawn, got 'some'"),
        ({"filters": "drawn", "points_per_image": None}, "criterion 'thinet', filters: expected all where all places"),
        ({"search": "swap"}, "criterion 'thinet', search: expected remove or add, got 'swap'"),
        ({"ridge": -1.0}, "criterion 'thinet', ridge: expected 0 or more, got -1.0"),
        ({"seed": -1}, "criterion 'thinet', seed: expected 0 or more, got -1"),
    ],
)
def test_an_impossible_option_is_an_error(options, message):
    with pytest.raises(OptionError, match=message):
        CRITERIA.build("thinet", **options)


def test_a_reader_of_another_kind_is_refused_by_name():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 5, 2)).double()
    message = (
        "criterion 'thinet', group '0': expected Conv2d without groups or Linear as reader, got ConvTranspose2d '2'"
    )
    with pytest.raises(RankingError, match=message):
        ranked(model, [pictures()])


def test_a_grouped_convolution_is_refused_as_a_reader():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2)).double()
    each = tuple((channel,) for channel in range(2))
    groups = ChannelGroups((ChannelGroup("0", 2, False, (), (), (Slice("1.weight", 1, each),)),))
    with pytest.raises(
        RankingError, match="group '0': expected Conv2d without groups or Linear as reader, got Conv2d '1'"
    ):
        ranked(model, [pictures()], groups)
