"""What is measured is what one finds by cutting each group by hand."""

import copy

import pytest
import torch
from small_networks import IMAGE, Residual, Twice, batches, chain, pictures, prepared
from torch import nn

from pruning.batchnorm import recalibrate
from pruning.criteria import CRITERIA
from pruning.errors import DataError, OptionError, RankingError
from pruning.finding import find_groups
from pruning.finetune import evaluate
from pruning.groups import ChannelGroup
from pruning.models.resnet_cifar import ResNetCifar
from pruning.ranking import NestedRanking
from pruning.sensitivity import check_shares, curves_of, measure_sensitivity, widths_at
from pruning.surgery import prune

SHARES = (0.3, 0.5, 0.75)


class Separable(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.expand, self.norm1 = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)
        self.depthwise, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.project, self.fc = nn.Conv2d(8, 4, 1), nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        inner = torch.relu(self.norm2(self.depthwise(torch.relu(self.norm1(self.expand(x))))))
        return self.fc((x + self.project(inner)).mean((2, 3)))


class Headed(nn.Module):
    """Has a head that runs in training only."""

    def __init__(self):
        super().__init__()
        self.main, self.head = chain(), nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1))

    def forward(self, x):
        return self.main(x) + (self.head(x).mean((2, 3)) if self.training else 0)


class Scaled(nn.Module):
    """Has a parameter that is no layer's."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), nn.Linear(4, 5)
        self.scale = nn.Parameter(torch.rand(6, 1, 1))

    def forward(self, x):
        return self.fc(torch.relu(self.second(self.scale * torch.relu(self.first(x)))).mean((2, 3)))


def padded():
    """Return a network whose shortcuts add zero channels: a cut changes what no maker is in front of."""
    return ResNetCifar(8, num_classes=5, widths=(3, 9, 14))


class Given:
    """A split of just these images."""

    def __init__(self, images, labels, size):
        self.images, self.labels, self.size = images, labels, size

    def __len__(self):
        return len(self.labels)

    def subset(self, count, seed):
        return self

    def batches(self, batch_size, **_):
        return iter(batches(self.images, self.labels, self.size))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def ranked(model, **options):
    return CRITERIA.build("l1", **options).rank(model, find_groups(model, IMAGE))


def by_hand(model, ranking, group, width, recalibration, test):
    cut = copy.deepcopy(model)
    prune(cut, {group: width}, ranking, example_input=IMAGE)
    if recalibration is not None:
        recalibrate(cut, recalibration)
    return evaluate(cut, test)


def agrees(found, expected):
    return found.accuracy == expected.accuracy and found.loss == pytest.approx(expected.loss, rel=1e-5)


@pytest.mark.parametrize("build", [chain, Residual, Separable, padded, Twice, Headed, Scaled])
@pytest.mark.parametrize("recalibrated", [True, False])
def test_each_number_is_that_of_a_cut_by_hand(build, recalibrated):
    model, test = prepared(build()), Given(*pictures(40), 16)
    recalibration = Given(*pictures(24), 10) if recalibrated else None
    ranking, groups = ranked(model), find_groups(model, IMAGE)
    data = (list(recalibration.batches(0)) if recalibrated else [], list(test.batches(0)))
    found = list(measure_sensitivity(model, groups, ranking, *data, SHARES))
    exact = check_shares(SHARES, "shares")
    expected = [(group.name, width) for group in groups.values() for width in widths_at(group, exact)]
    assert [(one.group, one.width) for one in found] == expected
    for one in found:
        assert agrees(one, by_hand(model, ranking, one.group, one.width, recalibration, test)), one
    losses = {one.loss for one in found if one.group != "head.0"}
    assert len(losses) > len(found) // 2  # the cuts do something


def test_the_numbers_are_float64():
    model, (images, labels) = prepared(chain()), pictures(40)
    ranking, groups = ranked(model), find_groups(model, IMAGE)
    for one in measure_sensitivity(model, groups, ranking, [], batches(images, labels, 20), SHARES):
        cut = copy.deepcopy(model)
        prune(cut, {one.group: one.width}, ranking, example_input=IMAGE)
        with torch.no_grad():
            loss = nn.functional.cross_entropy(cut.eval()(images), labels)
        assert one.loss == pytest.approx(float(loss), rel=1e-12)


def test_the_weights_that_a_ranking_fitted_are_those_of_the_cut():
    model, data = prepared(chain()), Given(*pictures(40), 20)
    groups = find_groups(model, IMAGE)
    ranking = CRITERIA.build("dcp", rate=0.5, complete=True, learning_rate=0.01).rank(model, groups, data.batches(0))
    before = copy.deepcopy(model.state_dict())
    for one in measure_sensitivity(model, groups, ranking, [], list(data.batches(0)), SHARES):
        assert agrees(one, by_hand(model, ranking, one.group, one.width, None, data)), one
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    unfitted = NestedRanking("dcp", ranking.orders)
    width = ranking.fitted_widths["0"]
    assert not agrees(by_hand(model, unfitted, "0", width, None, data), by_hand(model, ranking, "0", width, None, data))


def test_weights_that_were_fitted_in_front_of_the_group_count_at_their_width_only():
    model, data = prepared(chain()), Given(*pictures(40), 20)

    class Fitting(NestedRanking):
        def weights(self, model, groups, widths):
            return {"0.weight": -model[0].weight.detach()} if widths.get("4") == 2 else {}

    groups = find_groups(model, IMAGE)
    ranking = Fitting("fitting", ranked(model).orders)
    for one in measure_sensitivity(model, groups.only(["4"]), ranking, [], list(data.batches(0)), SHARES):
        assert agrees(one, by_hand(model, ranking, one.group, one.width, None, data)), one


def test_what_lies_in_front_of_a_group_runs_once_for_all_its_widths():
    model, runs = prepared(chain()), []
    model[0].register_forward_hook(lambda *_: runs.append(None))
    ranking, groups = ranked(model), find_groups(model, IMAGE).only(["4"])
    data = batches(*pictures(40), 20)
    found = list(measure_sensitivity(model, groups, ranking, data, data, (0.25, 0.5, 0.75)))
    assert [one.width for one in found] == [1, 2, 3, 4]
    checks = 4 * 3 + 6  # of each cut and of each way to run in parts
    assert 4 + 4 < len(runs) <= 4 + 4 + checks  # uncut and together: two batches for each of two passes
    runs.clear()
    list(measure_sensitivity(model, groups, ranking, 10 * data, data, (0.25, 0.5, 0.75)))
    assert len(runs) <= 22 + 22 + checks  # 66 + 22 would be each alone


def test_a_result_comes_before_the_next_group_is_measured():
    model, runs = prepared(chain()), []
    ranking, groups = ranked(model), find_groups(model, IMAGE)
    model.register_forward_hook(lambda *_: runs.append(None))
    found = measure_sensitivity(model, groups, ranking, [], [pictures()], SHARES)
    assert next(found).group == "0"
    before = len(runs)
    assert [one.group for one in found].count("4") == 3
    assert len(runs) > before


def test_the_network_is_left_as_found_also_when_nobody_asks_for_the_rest():
    model, data = prepared(Residual()), [pictures()]
    model.train()
    model.norm.eval()
    model.conv1.weight.requires_grad_(False)
    tensors, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    objects, state = [id(tensor) for tensor in model.state_dict(keep_vars=True).values()], torch.get_rng_state()
    found = measure_sensitivity(model, find_groups(model, IMAGE), ranked(model), data, data)
    next(found)
    for _ in (None, list(found)):
        assert [module.training for module in model.modules()] == modes
        assert [id(tensor) for tensor in model.state_dict(keep_vars=True).values()] == objects
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.is_grad_enabled()
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("width", "minimum", "shares", "expected"),
    [
        (100, 1, (0.55,), [55, 100]),  # 0.55 · 100 is 55.00000000000001 in floating point
        (16, 1, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), [2, 4, 5, 7, 8, 10, 12, 13, 15, 16]),
        (4, 1, (0.1, 0.2, 0.25, 0.9, 1.0), [1, 4]),
        (8, 4, (0.1, 0.3, 0.75), [4, 6, 8]),
        (8, 8, (0.5,), [8]),
    ],
)
def test_widths_are_distinct_exact_and_at_least_the_minimum(width, minimum, shares, expected):
    group = ChannelGroup("g", width, False, (), (), (), minimum)
    assert widths_at(group, check_shares(shares, "shares")) == expected


def test_curves_have_a_group_s_numbers_in_the_order_of_its_widths():
    model, data = prepared(chain()), [pictures()]
    found = list(measure_sensitivity(model, find_groups(model, IMAGE), ranked(model), data, data, SHARES))
    curves = curves_of(iter(found))
    assert list(curves) == ["0", "4"]
    for name, curve in curves.items():
        of_group = [one for one in found if one.group == name]
        assert curve.widths.tolist() == sorted(one.width for one in of_group)
        assert curve.loss.tolist() == [one.loss for one in of_group]
        assert curve.accuracy.tolist() == [one.accuracy for one in of_group]
        assert curve.widths.dtype == torch.int64
        assert curve.loss.dtype == curve.accuracy.dtype == torch.float64


def test_a_last_batch_of_one_image_has_no_variance_and_is_left_out():
    model, (images, labels) = prepared(chain()), pictures(9)
    groups, ranking, test = find_groups(model, IMAGE), ranked(model), [pictures()]
    first = list(measure_sensitivity(model, groups, ranking, batches(images[:8], labels[:8], 4), test, SHARES))
    assert list(measure_sensitivity(model, groups, ranking, batches(images, labels, 4), test, SHARES)) == first


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_an_error(share):
    model = prepared(chain())
    found = measure_sensitivity(model, find_groups(model, IMAGE), ranked(model), [], [pictures()], (0.5, share))
    with pytest.raises(OptionError, match="shares: expected numbers above 0, at most 1, got "):
        next(found)


def test_no_images_and_labels_without_a_class_are_errors():
    model = prepared(chain())
    groups, ranking, (images, labels) = find_groups(model, IMAGE), ranked(model), pictures()
    with pytest.raises(DataError, match="sensitivity: expected at least one image, got none"):
        next(measure_sensitivity(model, groups, ranking, [], []))
    with pytest.raises(DataError, match="label"):
        next(measure_sensitivity(model, groups, ranking, [], [(images, labels + 5)]))


def test_a_loss_that_is_not_finite_is_an_error_that_names_group_and_width():
    model, groups = prepared(chain()), find_groups(chain().double(), IMAGE)
    model[4].weight.data[1], model[4].bias.data[:2] = model[4].weight.data[0], 10
    model[7].weight.data[0, :2] = torch.tensor([1e307, -1e307], dtype=torch.float64)  # two equal channels that cancel
    ranking = NestedRanking("l1", {"4": torch.tensor([0, 2, 3, 1])})
    message = "'sensitivity', group '4': expected a finite loss with 1 of 4 channels, got inf"
    with pytest.raises(RankingError, match=message):
        list(measure_sensitivity(model, groups.only(["4"]), ranking, [], [pictures(40)], (0.25,)))
    model[0].weight.data[0] = torch.nan
    with pytest.raises(RankingError, match="'sensitivity': expected a network with a finite loss, got nan"):
        next(measure_sensitivity(model, groups, ranking, [], [pictures()]))
