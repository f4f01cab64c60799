import copy

import pytest
import torch
from small_networks import IMAGE, Residual, Twice, batches, chain, pictures, prepared
from torch import nn
from torch.nn import functional as F

from pruning.criteria import CRITERIA
from pruning.errors import DataError, OptionError, RankingError
from pruning.finding import find_groups
from pruning.groups import ChannelGroup, ChannelGroups, Slice, tensor_of


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def ranked(model, data, groups=None, **options):
    return CRITERIA.build("taylor", **options).rank(model, groups or find_groups(model, IMAGE), data)


def losses(model, images, labels):
    with torch.no_grad():
        return F.cross_entropy(model.eval()(images), labels, reduction="none")


def difference_quotient(model, part_of, channel, images, labels, step=1e-5):
    """Return d loss / d gate of each image, from two networks whose weights that read the channel are scaled."""
    results = []
    for factor in (1 + step, 1 - step):
        scaled = copy.deepcopy(model)
        for part in part_of.readers:
            weight = tensor_of(scaled, part.tensor).data.movedim(part.axis, 0)
            weight[list(part.positions[channel])] *= factor
        results.append(losses(scaled, images, labels))
    return (results[0] - results[1]) / (2 * step)


@pytest.mark.parametrize("build", [chain, Residual])
def test_the_score_is_the_mean_square_of_the_difference_quotient_of_the_loss(build):
    model, (images, labels) = prepared(build()), pictures()
    groups = find_groups(model, IMAGE)
    ranking = ranked(model, batches(images, labels, 5))
    for name, group in groups.items():
        slopes = [difference_quotient(model, group, channel, images, labels) for channel in range(group.width)]
        expected = [float((slope**2).mean()) for slope in slopes]
        assert ranking.scores[name].tolist() == pytest.approx(expected, rel=1e-6)


def test_it_is_the_paper_s_gate_behind_the_batch_norm():
    model, (images, labels) = prepared(chain()), pictures()
    expected = torch.zeros(6, dtype=torch.float64)
    norm = model[1]
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        loss = F.cross_entropy(model.eval()(image), label)
        scale, shift = torch.autograd.grad(loss, [norm.weight, norm.bias])
        expected += (norm.weight * scale + norm.bias * shift).detach() ** 2 / len(images)
    assert ranked(model, [(images, labels)]).scores["0"].tolist() == pytest.approx(expected.tolist(), rel=1e-9)


def test_batch_size_and_order_do_not_matter():
    model, (images, labels) = prepared(Residual()), pictures()
    whole = ranked(model, [(images, labels)])
    for data in (batches(images, labels, 1), batches(images, labels, 5), batches(images, labels, 5)[::-1]):
        for name, scores in ranked(model, data).scores.items():
            assert scores.tolist() == pytest.approx(whole.scores[name].tolist(), rel=1e-9)


def test_images_takes_the_first_images_and_asks_for_no_batch_more():
    model, (images, labels) = prepared(chain()), pictures()

    def stream():
        yield from batches(images[:9], labels[:9], 4)[:2]
        raise AssertionError("asked for a batch that is not needed")

    first = ranked(model, [(images[:6], labels[:6])]).scores["0"].tolist()
    assert ranked(model, stream(), images=6).scores["0"].tolist() == pytest.approx(first, rel=1e-9)
    assert ranked(model, [(images[:6], labels[:6])], images=999).scores["0"].tolist() == first


def test_a_channel_that_nobody_reads_scores_zero_and_goes_first():
    model = prepared(chain())
    model[4].weight.data[:, 2] = 0
    ranking = ranked(model, [pictures()])
    assert ranking.scores["0"][2] == 0
    assert ranking.orders["0"].tolist()[-1] == 2


def test_a_layer_that_is_used_twice_counts_both_times():
    model, (images, labels) = prepared(Twice()), pictures()
    each = tuple((channel,) for channel in range(4))
    group = ChannelGroup("first", 4, False, (), (), (Slice("second.weight", 1, each),))
    expected = [float((difference_quotient(model, group, c, images, labels) ** 2).mean()) for c in range(4)]
    scores = ranked(model, [(images, labels)], ChannelGroups((group,))).scores["first"]
    assert scores.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_head_that_does_not_run_in_eval_mode_scores_zero():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.head = chain(), nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1))

        def forward(self, x):
            return self.main(x) + (self.head(x).mean((2, 3)) if self.training else 0)

    scores = ranked(prepared(Auxiliary()), [pictures()]).scores
    assert scores["head.0"].tolist() == [0.0] * 4
    assert scores["main.0"].min() > 0


def test_a_head_whose_output_nobody_uses_scores_zero():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.head = chain(), nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1))

        def forward(self, x):
            self.head(x)
            return self.main(x)

    model = prepared(Idle())
    assert ranked(model, [pictures()]).scores["head.0"].tolist() == [0.0] * 4
    model.requires_grad_(False)
    alone = find_groups(model, IMAGE).only(["head.0"])
    assert ranked(model, [pictures()], alone).scores["head.0"].tolist() == [0.0] * 4


def test_a_label_without_a_class_is_named():
    images, labels = pictures()
    with pytest.raises(DataError, match="expected classes 0 to 4, got 5"):
        ranked(prepared(chain()), [(images, labels + 1)])


def test_channels_of_tokens_lie_along_the_last_axis():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow, self.fc = nn.Linear(3, 6), nn.Linear(6, 4), nn.Linear(4, 5)

        def forward(self, x):
            x = self.wide(x.flatten(2).transpose(1, 2))  # [images, 64 pixels, 6 channels]
            return self.fc(torch.relu(self.narrow(torch.relu(x))).mean(1))

    model, (images, labels) = prepared(Tokens()), pictures()
    groups = find_groups(model, IMAGE)
    scores = ranked(model, [(images, labels)]).scores["wide"].tolist()
    slopes = [difference_quotient(model, groups["wide"], channel, images, labels) for channel in range(6)]
    assert scores == pytest.approx([float((slope**2).mean()) for slope in slopes], rel=1e-6)


def test_a_frozen_network_is_scored_like_any_other_also_without_gradients_around():
    model, data = prepared(chain()), [pictures()]
    expected = ranked(model, data).scores["0"].tolist()
    model.requires_grad_(False)
    with torch.no_grad():
        assert ranked(model, data).scores["0"].tolist() == expected
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_gradients_that_the_caller_collected_stay():
    model = prepared(chain())
    model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    ranked(model, [pictures()])
    assert bool((model[0].weight.grad == 7).all())
    assert model[4].weight.grad is None


def test_mode_hooks_and_random_state_are_as_found_after_an_error_too():
    model, (images, labels) = prepared(chain()), pictures()
    model.train()
    model[1].eval()
    before, state = [module.training for module in model.modules()], torch.get_rng_state()

    def broken():
        torch.rand(3)
        yield images, labels
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        ranked(model, broken())
    assert [module.training for module in model.modules()] == before
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_images_of_another_type_are_taken_to_the_weights_type():
    model, (images, labels) = prepared(chain()), pictures()
    rounded = images.float()
    expected = ranked(model, [(rounded.double(), labels)]).scores["0"].tolist()
    assert ranked(model, [(rounded, labels)]).scores["0"].tolist() == expected


def test_no_data_is_an_error():
    with pytest.raises(RankingError, match="criterion 'taylor': needs data, expected batches"):
        ranked(prepared(chain()), None)
    with pytest.raises(RankingError, match="criterion 'taylor': needs data, expected at least one image, got none"):
        ranked(prepared(chain()), [])


def test_a_nan_is_an_error_that_names_group_and_channel():
    model = prepared(chain())
    model[0].weight.data[1] = torch.nan
    with pytest.raises(RankingError, match=r"criterion 'taylor', group '0': channels \[.*1.*\] have no finite score"):
        ranked(model, [pictures()])


def test_images_below_one_is_an_error():
    with pytest.raises(OptionError, match="criterion 'taylor', images: expected at least 1, got 0"):
        CRITERIA.build("taylor", images=0)


def test_a_layer_that_sees_no_row_an_image_is_an_error():
    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 5)

        def forward(self, x):
            rows = x.movedim(1, -1).reshape(-1, 3)
            return self.second(self.first(rows)).view(len(x), 64, 5).mean(1)

    each = tuple((channel,) for channel in range(4))
    group = ChannelGroup("first", 4, False, (), (), (Slice("second.weight", 1, each),))
    with pytest.raises(RankingError, match="layer 'second': expected an input row for each of 12 images, got 768"):
        ranked(Pixels().double(), [pictures()], ChannelGroups((group,)))
