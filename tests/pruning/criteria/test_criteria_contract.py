"""What every registered criterion promises, on a network with a residual sum, a depthwise and an inner group."""

import copy

import pytest
import torch
from torch import nn

from pruning.criteria import CRITERIA
from pruning.errors import OptionError, RankingError
from pruning.finding import find_groups
from pruning.greedy import GreedyRanking
from pruning.ranking import NestedRanking, Ranking

IMAGE = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
CLASSES = 5
BLIND = {"random", "random_dcp"}
"""Criteria that do not look at the network when they choose: nothing moves with its channels."""
WITHOUT_STEPS = {"dcp": {"learning_rate": 0}, "random_dcp": {"learning_rate": 0}}
"""Options of criteria that train on the way: each batch makes a step, so batches matter."""


class Block(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Separable(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.expand, self.bn1 = nn.Conv2d(width, inner, 1), nn.BatchNorm2d(inner)
        self.depthwise, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1, groups=inner), nn.BatchNorm2d(inner)
        self.project, self.bn3 = nn.Conv2d(inner, width, 1), nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        x1 = torch.relu(self.bn2(self.depthwise(torch.relu(self.bn1(self.expand(x))))))
        return self.dropout(x + self.bn3(self.project(x1)))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.block, self.separable = Block(8, 6), Separable(8, 12)
        self.pool, self.fc = nn.AvgPool2d(4), nn.Linear(8 * 4, CLASSES)

    def forward(self, x):
        x = self.separable(self.block(torch.relu(self.bn(self.stem(x)))))
        return self.fc(self.pool(x).flatten(1))


@pytest.fixture
def network():
    """Return a network in mixed modes whose channels are all different, in float64."""
    torch.manual_seed(0)
    model = Network().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor)
    model.train()
    model.block.bn1.eval()
    model.separable.requires_grad_(False)
    return model


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(20, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.arange(20) % CLASSES


def batches(pictures, size=20, backwards=False):
    images, labels = pictures
    parts = list(zip(images.split(size), labels.split(size), strict=True))
    return parts[::-1] if backwards else parts


def ranked(name, model, data, **options):
    return CRITERIA.build(name, **options).rank(model, find_groups(model, IMAGE), data)


def same(first, second, channels=None):
    """Compare two rankings; `channels[group]` says which channel of the first each channel of the second was."""
    for group, width in GROUPS.items():
        moved = (channels or {}).get(group, torch.arange(width))
        if isinstance(first, GreedyRanking):  # which of two dead channels is picked first depends on their numbers
            expected = first.losses[group].tolist()
            assert second.losses[group].tolist() == pytest.approx(expected, rel=1e-7, abs=1e-12), group
            half = width // 2
            assert sorted(moved[list(second.keep(group, half))].tolist()) == list(first.keep(group, half)), group
            continue
        if scores := getattr(first, "scores", {}):
            expected = scores[group][moved].tolist()
            assert second.scores[group].tolist() == pytest.approx(expected, rel=1e-7, abs=1e-12), group
            continue
        for keep in range(1, width + 1):
            assert sorted(moved[list(second.keep(group, keep))].tolist()) == list(first.keep(group, keep)), group


GROUPS = {"stem": 8, "block.conv1": 6, "separable.expand": 12}
each_criterion = pytest.mark.parametrize("name", CRITERIA.names())
each_seeing_criterion = pytest.mark.parametrize("name", [name for name in CRITERIA.names() if name not in BLIND])


def test_the_network_has_the_groups_that_the_contract_is_about(network):
    groups = find_groups(network, IMAGE)
    assert groups.widths == GROUPS
    assert groups["stem"].coupled
    assert any(part.tensor == "separable.depthwise.weight" for part in groups["separable.expand"].carried)


@each_criterion
def test_every_group_is_ranked_at_every_width(name, network, pictures):
    ranking = ranked(name, network, batches(pictures))
    assert isinstance(ranking, Ranking)
    assert ranking.criterion == CRITERIA.build(name).name
    for group, width in GROUPS.items():
        for keep in range(1, width + 1):
            kept = ranking.keep(group, keep)
            assert len(set(kept)) == keep
            assert list(kept) == sorted(kept)
            assert set(kept) <= set(range(width))


@each_criterion
def test_scores_are_finite_float64_and_the_highest_are_kept(name, network, pictures):
    ranking = ranked(name, network, batches(pictures))
    if not isinstance(ranking, NestedRanking) or not ranking.scores:
        pytest.skip("decides without scores")
    for group, width in GROUPS.items():
        scores = ranking.scores[group]
        assert scores.dtype == torch.float64
        assert scores.shape == (width,)
        assert bool(scores.isfinite().all())
        best = sorted(range(width), key=lambda channel: (-float(scores[channel]), channel))
        assert list(ranking.keep(group, width // 2)) == sorted(best[: width // 2])


@each_criterion
def test_the_network_its_mode_hooks_and_random_state_are_left_as_found(name, network, pictures):
    network.stem.weight.grad = torch.ones_like(network.stem.weight)
    tensors = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    needed = [parameter.requires_grad for parameter in network.parameters()]
    state = torch.get_rng_state()
    ranked(name, network, batches(pictures, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == needed
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert not any(module._backward_hooks or module._backward_pre_hooks for module in network.modules())
    grads = {key: parameter.grad for key, parameter in network.named_parameters() if parameter.grad is not None}
    assert list(grads) == ["stem.weight"]
    assert bool((grads["stem.weight"] == 1).all())


@each_criterion
def test_a_second_time_gives_the_same(name, network, pictures):
    first = ranked(name, network, batches(pictures))
    torch.rand(7)
    same(first, ranked(name, network.eval(), batches(pictures)))


@each_criterion
def test_batch_size_and_order_do_not_matter(name, network, pictures):
    options = WITHOUT_STEPS.get(name, {})
    whole = ranked(name, network, batches(pictures), **options)
    same(whole, ranked(name, network, batches(pictures, 7), **options))
    same(whole, ranked(name, network, batches(pictures, 7, backwards=True), **options))


@each_seeing_criterion
def test_the_ranking_moves_with_the_channels(name, network, pictures):
    before = ranked(name, network, batches(pictures))
    generator = torch.Generator().manual_seed(2)
    output = network.eval()(pictures[0])
    groups, state, channels = find_groups(network, IMAGE), network.state_dict(), {}
    for group in groups.values():
        channels[group.name] = torch.randperm(group.width, generator=generator)
        for part in group.slices:
            tensor = state[part.tensor].movedim(part.axis, 0)
            positions = torch.tensor(part.positions)
            tensor[positions] = tensor[positions[channels[group.name]]]
    torch.testing.assert_close(network(pictures[0]), output)  # the same network, its channels in another order
    same(before, ranked(name, network, batches(pictures)), channels)


@each_criterion
def test_some_groups_are_ranked_like_all(name, network, pictures):
    groups = find_groups(network, IMAGE)
    whole = CRITERIA.build(name).rank(network, groups, batches(pictures))
    # Where groups are cut one after the other, each depends on those before it.
    chosen, other = ("stem", "block.conv1") if isinstance(whole, GreedyRanking) else ("block.conv1", "stem")
    part = CRITERIA.build(name).rank(network, groups.only([chosen]), batches(pictures))
    assert part.keep(chosen, 3) == whole.keep(chosen, 3)
    with pytest.raises(RankingError, match=f"no group '{other}'"):
        part.keep(other, 3)


@pytest.mark.parametrize("name", [name for name in CRITERIA.names() if CRITERIA.get(name).needs_data])
def test_a_criterion_that_needs_data_says_so(name, network):
    with pytest.raises(RankingError, match=f"'{name}': needs data"):
        ranked(name, network, None)
    with pytest.raises(RankingError, match=f"'{name}': needs data"):
        ranked(name, network, [])


@each_seeing_criterion
def test_a_nan_is_an_error_that_names_the_criterion_and_a_group(name, network, pictures):
    for parameter in network.block.parameters():
        parameter.data[0] = torch.nan
    with pytest.raises(RankingError, match=f"'{CRITERIA.get(name).name}', group '(stem|block.conv1|separable.expand)'"):
        ranked(name, network, batches(pictures))


@each_criterion
def test_a_module_is_named_like_what_it_registers(name):
    criterion = CRITERIA.get(name)
    assert criterion.__module__ == f"pruning.criteria.{criterion.name}"
    assert criterion.name in CRITERIA.names()


@each_criterion
def test_an_unknown_option_is_an_error(name):
    with pytest.raises(OptionError, match=f"criterion '{name}': unknown option 'colour'"):
        CRITERIA.build(name, colour="red")
