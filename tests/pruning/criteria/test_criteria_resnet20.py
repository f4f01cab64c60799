"""The registered criteria on the published ResNet-20 and real images."""

import copy

import pytest
import torch

from pruning import (
    ALLOCATIONS,
    ChannelGroups,
    CostModel,
    evaluate,
    find_groups,
    prune,
    recalibrate,
)
from pruning.criteria import CRITERIA
from pruning.ranking import NestedRanking

IMAGE = torch.zeros(1, 3, 32, 32)
BLIND = {"random", "random_dcp"}
TRAIN = {"dcp", "random_dcp"}
"""Each batch makes a step, a pick takes two passes: these have a test of their own on few images."""

pytestmark = pytest.mark.data


@pytest.mark.parametrize("name", [name for name in CRITERIA.names() if name not in TRAIN])
def test_batches_of_another_size_in_another_order_rank_the_same(name, resnet20, cifar):
    images = cifar.train.subset(48, seed=0)
    model = copy.deepcopy(resnet20).double()  # in float32 the last digits depend on the batch size
    groups = find_groups(model, IMAGE.double())
    options = {"shares": (0.5,)} if name == "sensitivity" else {}
    first = CRITERIA.build(name, **options).rank(model, groups, images.batches(48))
    again = CRITERIA.build(name, **options).rank(model, groups, list(images.batches(20))[::-1])
    for group, width in groups.widths.items():
        if isinstance(first, NestedRanking) and first.scores:
            assert again.scores[group].tolist() == pytest.approx(first.scores[group].tolist(), rel=1e-6, abs=1e-12)
        else:
            assert again.keep(group, width // 2) == first.keep(group, width // 2)


@pytest.fixture(scope="module")
def accuracy(resnet20, cifar):
    """Return what a criterion's choice is worth after a uniform cut to 75 % of the MACs, without training."""
    groups = find_groups(resnet20, IMAGE)
    cost = CostModel(resnet20, groups, IMAGE)
    inner = ChannelGroups(tuple(groups[group] for group in groups.matching(("inner",))))
    widths = ALLOCATIONS.build("uniform").widths(inner, cost, cost.full.macs * 3 // 4)
    images, judged = cifar.train.subset(1024, seed=0), cifar.test.subset(500, seed=0)

    def measure(name, **options):
        cut = copy.deepcopy(resnet20)
        ranking = CRITERIA.build(name, **options).rank(cut, inner, images.batches(128))
        prune(cut, widths, ranking, groups=groups, example_input=IMAGE)
        recalibrate(cut, cifar.train, images=512)
        return evaluate(cut, judged).accuracy

    return measure


@pytest.fixture(scope="module")
def chance(accuracy):
    return max(accuracy("random", seed=seed) for seed in range(3))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CRITERIA.names() if name not in BLIND | TRAIN])
def test_the_choice_is_better_than_chance(name, accuracy, chance):
    assert accuracy(name) > chance


@pytest.mark.parametrize("options", [{}, {"mode": "fast"}, {"loss_weight": 0}], ids=str)
def test_dcp_prunes_to_the_network_that_it_selected(options, resnet20, cifar):
    groups = find_groups(resnet20, IMAGE)
    some = groups.only(["layer2.1.conv1", "layer3.2.conv1"])
    batches = list(cifar.train.subset(128, seed=0).batches(64))
    masked, cut = copy.deepcopy(resnet20), copy.deepcopy(resnet20)
    ranking = CRITERIA.build("dcp", rate=0.9, complete=False, **options).select(masked, resnet20, some, batches)
    assert ranking.fitted_widths == {"layer2.1.conv1": 4, "layer3.2.conv1": 7}
    assert all(float(curve[-1]) < float(curve[0]) for curve in ranking.losses.values())
    prune(cut, ranking.fitted_widths, ranking, groups=groups, example_input=IMAGE)
    images = batches[0][0]
    torch.testing.assert_close(cut.eval()(images), masked.eval()(images), rtol=1e-3, atol=1e-4)
