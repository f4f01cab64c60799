import math

import numpy as np
import pytest
import torch
from gated_networks import GATED, Separable
from small_networks import IMAGE, Residual, batches, chain, pictures, prepared
from torch import nn

from pruning.criteria import CRITERIA
from pruning.errors import OptionError, RankingError
from pruning.finding import find_groups
from pruning.groups import ChannelGroup, ChannelGroups, Slice, tensor_of
from pruning.information import HIDDEN, Critic, normalised_hsic

each_network = pytest.mark.parametrize("make", GATED)
SCALED = [(chain, "1", "4"), (Residual, "norm1", "conv2"), (Separable, "norm", "project")]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(6)


def ranked(model, data, groups=None, **options):
    return CRITERIA.build("cpgmi", **options).rank(model, groups or find_groups(model, IMAGE), data)


def same(first, second, rel=1e-9):
    assert first.scores.keys() == second.scores.keys()
    for name, scores in first.scores.items():
        assert second.scores[name].tolist() == pytest.approx(scores.tolist(), rel=rel, abs=1e-12), name


def slow_hsic(features, labels):
    """Return HSIC(K, L) / √(HSIC(K, K)·HSIC(L, L)) with the centring matrix and one-hot labels written out."""
    count = len(labels)
    H = torch.eye(count, dtype=torch.float64) - 1 / count
    one_hot = nn.functional.one_hot(labels).double()
    K, L = H @ features @ features.T @ H, H @ one_hot @ one_hot.T @ H
    return torch.trace(K @ L) / (torch.trace(K @ K) * torch.trace(L @ L)).sqrt()


def slow_scores(make, model, groups, blocks, information):
    """Return the scores from the network that is written out with one gate a channel."""
    sums = {name: torch.zeros(group.width, dtype=torch.float64) for name, group in groups.items()}
    for images, labels in blocks:
        gates = {n: torch.ones(g.width, dtype=torch.float64, requires_grad=True) for n, g in groups.items()}
        found = information(GATED[make](model.eval(), images, gates), labels)
        for name, slope in zip(gates, torch.autograd.grad(found, list(gates.values())), strict=True):
            sums[name] += slope.abs()
    return {name: (total / total.square().sum().sqrt()).tolist() for name, total in sums.items()}


@each_network
def test_is_the_mean_over_blocks_of_the_gradient_of_a_gate_on_the_channel(make):
    model, (images, labels) = prepared(make()), pictures(20)
    groups = find_groups(model, IMAGE)
    scores = ranked(model, batches(images, labels, 3), block=8).scores
    expected = slow_scores(make, model, groups, batches(images, labels, 8), slow_hsic)
    for name in groups:
        assert scores[name].tolist() == pytest.approx(expected[name], rel=1e-9)


@each_network
def test_a_critic_s_gradient_is_taken_in_the_same_way(make):
    model, (images, labels) = prepared(make()), pictures(20)
    groups = find_groups(model, IMAGE)
    with torch.no_grad():
        open_gates = {name: torch.ones(group.width, dtype=torch.float64) for name, group in groups.items()}
        features = GATED[make](model.eval(), images, open_gates)
    critic = Critic(features, labels, steps=7, batch=8, seed=3)
    scores = ranked(model, batches(images, labels, 6), block=8, estimate="mine", steps=7, seed=3).scores
    expected = slow_scores(make, model, groups, batches(images, labels, 8), critic)
    for name in groups:
        assert scores[name].tolist() == pytest.approx(expected[name], rel=1e-6)


@pytest.mark.parametrize("estimate", ["hsic", "mine"])
def test_blocks_do_not_depend_on_batches_but_matter(estimate):
    model, (images, labels) = prepared(Residual()), pictures(20)
    options = {"estimate": estimate, "steps": 5}
    whole = ranked(model, [(images, labels)], block=8, **options)
    for size in (1, 7, 8):
        same(whole, ranked(model, batches(images, labels, size), block=8, **options), rel=1e-6)
    assert not torch.allclose(whole.scores["stem"], ranked(model, [(images, labels)], **options).scores["stem"])


def test_a_last_block_counts_if_it_has_three_images_and_two_classes():
    model, (images, labels) = prepared(chain()), pictures(12)
    labels[:8], labels[8:] = torch.arange(8) % 5, torch.tensor([1, 1, 1, 2])
    first = ranked(model, [(images[:8], labels[:8])], block=8)
    for seen in (9, 11):  # three images more are of one class
        same(first, ranked(model, [(images[:seen], labels[:seen])], block=8))
    both = ranked(model, [(images, labels)], block=8)
    assert not torch.allclose(first.scores["0"], both.scores["0"])


@pytest.mark.parametrize(("make", "norm", "reader"), SCALED)
def test_making_a_channel_larger_and_reading_it_as_much_smaller_changes_nothing(make, norm, reader):
    model, data = prepared(make()), [pictures(16)]
    before = ranked(model, data)
    for parameter in model.get_submodule(norm).parameters():
        parameter.data[1] *= 4
    model.get_submodule(reader).weight.data[:, 1] /= 4
    same(before, ranked(model, data))


def test_the_group_in_front_of_the_last_layer_has_scores():
    model = prepared(chain())
    assert ranked(model, [pictures()]).scores["4"].min() > 0


def test_a_network_without_a_linear_layer_is_judged_by_its_outputs():
    def convolutional():
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    model, (images, labels) = prepared(convolutional()), pictures(12)
    gate = torch.ones(6, dtype=torch.float64, requires_grad=True)
    outputs = model[4](model[3](model[2](model[1](model[0](images)) * gate[:, None, None])))
    slope = torch.autograd.grad(slow_hsic(outputs, labels), gate)[0].abs()
    assert ranked(model, [(images, labels)]).scores["0"].tolist() == pytest.approx((slope / slope.norm()).tolist())


def test_of_several_linear_layers_the_last_one_counts():
    model = prepared(nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 5)))
    images, labels = pictures(12)
    gate = torch.ones(6, dtype=torch.float64, requires_grad=True)
    features = model[3](torch.relu(model[1](images.flatten(1))) * gate)
    slope = torch.autograd.grad(slow_hsic(features, labels), gate)[0].abs()
    assert ranked(model, [(images, labels)]).scores["1"].tolist() == pytest.approx((slope / slope.norm()).tolist())


def test_a_dead_channel_scores_zero_and_is_last():
    model = prepared(chain())
    model[4].weight.data[2], model[4].bias.data[2] = 0, 0
    for estimate in ("hsic", "mine"):
        ranking = ranked(model, [pictures(30)], estimate=estimate, steps=5)
        assert ranking.scores["4"][2] == 0
        assert ranking.orders["4"][-1] == 2


def test_features_that_are_all_the_same_score_zero():
    model = prepared(chain())
    model[4].weight.data.zero_()
    model[4].bias.data.zero_()
    ranking = ranked(model, [pictures()])
    assert ranking.scores["0"].tolist() == [0.0] * 6
    assert ranking.orders["0"].tolist() == list(range(6))


def test_a_duplicate_channel_has_the_same_score():
    model = prepared(chain())
    for part in find_groups(model, IMAGE)["0"].slices:
        tensor = tensor_of(model, part.tensor).data.movedim(part.axis, 0)
        tensor[4] = tensor[1]
    scores = ranked(model, [pictures()]).scores["0"]
    assert scores[4].item() == pytest.approx(scores[1].item(), rel=1e-12)


def test_options_of_the_critic_change_the_scores_and_its_seed_is_all_the_chance_there_is():
    model, data = prepared(chain()), [pictures(20)]
    first = ranked(model, data, estimate="mine", steps=9, seed=1).scores["0"]
    torch.rand(5)
    state = torch.get_rng_state()
    assert torch.equal(first, ranked(model, data, estimate="mine", steps=9, seed=1).scores["0"])
    assert torch.equal(torch.get_rng_state(), state)
    for other in ({"seed": 2, "steps": 9}, {"seed": 1, "steps": 8}, {"seed": 1, "steps": 9, "block": 7}):
        assert not torch.allclose(first, ranked(model, data, estimate="mine", **other).scores["0"])


def test_images_that_come_only_once_are_enough_for_a_critic():
    model, (images, labels) = prepared(chain()), pictures(20)
    options = {"estimate": "mine", "steps": 5, "images": 12}
    expected = ranked(model, batches(images[:12], labels[:12], 5), **options)
    same(expected, ranked(model, iter(batches(images, labels, 5)), **options), rel=1e-6)


def test_images_takes_the_first_images_and_asks_for_no_batch_more():
    model, (images, labels) = prepared(chain()), pictures(12)

    def stream():
        yield from batches(images[:9], labels[:9], 4)[:2]
        raise AssertionError("asked for a batch that is not needed")

    same(ranked(model, [(images[:6], labels[:6])]), ranked(model, stream(), images=6))


def test_a_frozen_network_without_gradients_around_is_scored_like_any_other():
    model, data = prepared(chain()), [pictures()]
    for estimate in ("hsic", "mine"):
        expected = ranked(model, data, estimate=estimate, steps=3)
        with torch.no_grad():
            same(expected, ranked(model.requires_grad_(False), data, estimate=estimate, steps=3))
        model.requires_grad_(True)


def test_images_of_one_class_are_an_error():
    model, (images, labels) = prepared(chain()), pictures(12)
    for estimate in ("hsic", "mine"):
        with pytest.raises(
            RankingError, match="'cpgmi': expected at least 3 images of at least two classes in a block of 4, got no"
        ):
            ranked(model, [(images, torch.zeros_like(labels))], block=4, estimate=estimate)


def test_two_images_say_nothing():
    model, (images, _) = prepared(chain()), pictures(2)
    with pytest.raises(RankingError, match="'cpgmi': expected at least 3 images"):
        ranked(model, [(images, torch.tensor([0, 1]))])


def test_bad_options_are_errors():
    for option, bad, least in (("images", 0, 1), ("block", 2, 3), ("steps", 0, 1)):
        with pytest.raises(OptionError, match=f"criterion 'cpgmi', {option}: expected at least {least}, got {bad}"):
            CRITERIA.build("cpgmi", **{option: bad})
    with pytest.raises(OptionError, match="criterion 'cpgmi', estimate: expected hsic or mine, got 'hsci'"):
        CRITERIA.build("cpgmi", estimate="hsci")


def test_features_that_do_not_belong_to_the_images_are_an_error():
    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), nn.Linear(3, 5)

        def forward(self, x):
            rows = self.second(self.first(x)).movedim(1, -1).reshape(-1, 3)
            return self.fc(rows).view(len(x), 64, 5).mean(1)

    each = tuple((channel,) for channel in range(4))
    group = ChannelGroup("first", 4, False, (), (), (Slice("second.weight", 1, each),))
    with pytest.raises(RankingError, match="expected features of each of 12 images in front of the last linear layer"):
        ranked(Pixels().double(), [pictures()], ChannelGroups((group,)))


def test_hsic_is_one_for_features_that_are_the_labels_and_scale_and_shift_change_nothing():
    labels = torch.arange(12) % 4
    one_hot = nn.functional.one_hot(labels).double()
    assert normalised_hsic(one_hot, labels).item() == pytest.approx(1)
    assert normalised_hsic(one_hot * 7 - 3, labels).item() == pytest.approx(1)
    features = torch.randn(12, 5, dtype=torch.float64)
    assert normalised_hsic(features, labels).item() == pytest.approx(slow_hsic(features, labels).item())


def test_a_critic_s_bound_is_donsker_and_varadhan_s():
    features, labels = torch.randn(9, 4, dtype=torch.float64), torch.tensor([0, 2, 2, 0, 3, 2, 0, 0, 3])
    critic = Critic(features, labels, steps=5, batch=9, seed=0)
    first, of_labels, out = (weights.numpy() for weights in critic.weights)
    x = features.numpy()
    x = (x - x.mean(0)) / x.std(0)
    T = [[np.maximum(row @ first + of_labels[label], 0) @ out for label in labels.tolist()] for row in x]
    true = np.mean([T[image][image] for image in range(9)])
    assert critic(features, labels).item() == pytest.approx(true - math.log(np.mean(np.exp(T))))
    assert first.shape == (4, HIDDEN)


@pytest.mark.parametrize(("noise", "expected"), [(0.1, math.log(4)), (1000.0, 0.0)])
def test_a_critic_finds_the_information_that_is_there(noise, expected):
    labels = torch.arange(2000) % 4
    features = nn.functional.one_hot(labels).double() + noise * torch.randn(2000, 4, dtype=torch.float64)
    critic = Critic(features[:1000], labels[:1000], steps=300, batch=128, seed=0)
    assert critic(features[1000:], labels[1000:]).item() == pytest.approx(expected, abs=0.1)
