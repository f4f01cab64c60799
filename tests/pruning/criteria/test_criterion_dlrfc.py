import math
from fractions import Fraction

import pytest
import torch
from gated_networks import Separable
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import IMAGE, Residual, batches, chain, pictures, prepared
from torch import nn

from pruning.criteria import CRITERIA
from pruning.criteria.dlrfc import _Top
from pruning.errors import OptionError, RankingError
from pruning.finding import find_groups

FEW = settings(max_examples=60, deadline=None)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(5)


def ranked(model, data, groups=None, **options):
    return CRITERIA.build("dlrfc", **{"share": 0.5} | options).rank(model, groups or find_groups(model, IMAGE), data)


def slow_entropy(responses, labels, top, share=0.5):
    """Return the entropy of the labels of the largest responses; equal ones share the places that are left."""
    if not any(responses):
        return math.log2(len(set(labels))) + 1
    places = min(top, max(1, math.floor(len(responses) * share)))
    last = sorted(responses, reverse=True)[places - 1]
    above = [label for response, label in zip(responses, labels, strict=True) if response > last]
    tied = [label for response, label in zip(responses, labels, strict=True) if response == last]
    entropy = 0.0
    for label in set(labels):
        count = above.count(label) + tied.count(label) * (places - len(above)) / len(tied)
        entropy -= count / places * math.log2(count / places) if count else 0
    return entropy


def top_of(responses, labels, top, sizes):
    """Return the entropies of channels whose responses come in batches of these sizes, the rest in one."""
    found = _Top(top, len(responses), torch.device("cpu"))
    x, y = torch.tensor(responses, dtype=torch.float64), torch.tensor(labels)
    sizes = [*sizes, len(labels) - sum(sizes)]
    for of_batch, of_labels in zip(x.split(sizes, dim=1), y.split(sizes), strict=True):
        if len(of_labels):
            found.add(of_batch, of_labels)
    return found.entropy(Fraction(1, 2)).tolist()


@st.composite
def responded(draw):
    """Return the labels of some images and what three channels respond, with many ties."""
    images = draw(st.integers(2, 14))
    labels = [0, 4, *draw(st.lists(st.integers(0, 4), min_size=images - 2, max_size=images - 2))]
    response = st.integers(0, 3).map(float)
    channels = draw(st.lists(st.lists(response, min_size=images, max_size=images), min_size=3, max_size=3))
    cut = draw(st.integers(0, images))
    return channels, labels, [cut, draw(st.integers(0, images - cut))]


@FEW
@given(case=responded(), top=st.integers(1, 9))
def test_is_the_entropy_of_the_labels_however_the_images_are_batched(case, top):
    channels, labels, sizes = case
    expected = [slow_entropy(responses, labels, top) for responses in channels]
    assert top_of(channels, labels, top, sizes) == pytest.approx(expected, abs=1e-12)


@FEW
@given(case=responded(), top=st.integers(1, 9), data=st.data())
def test_neither_the_order_of_images_nor_the_names_of_classes_nor_the_scale_matters(case, top, data):
    channels, labels, sizes = case
    order = data.draw(st.permutations(range(len(labels))))
    names = data.draw(st.permutations(range(5)))
    moved = [[responses[image] * 8 for image in order] for responses in channels]
    renamed = [names[labels[image]] for image in order]
    assert top_of(moved, renamed, top, sizes) == top_of(channels, labels, top, [])


def maps_of(model, groups, images):
    """Return, for each group, the distinct tensors that its readers read, `[images, inputs, height, width]`."""
    read, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            hooks.append(module.register_forward_hook(lambda m, x, y, name=name: read.update({name: x[0]})))
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return {
        name: list({id(read[part.layer]): (read[part.layer], part) for part in group.readers}.values())
        for name, group in groups.items()
    }


@pytest.mark.parametrize("response", ["l2", "max"])
@pytest.mark.parametrize("make", [chain, Residual, Separable])
def test_is_minus_the_entropy_added_up_over_the_maps_where_a_channel_is_read(make, response):
    model, (images, labels) = prepared(make()), pictures(40)
    groups = find_groups(model, IMAGE)
    scores = ranked(model, batches(images, labels, 9), top=7, response=response).scores
    for name, maps in maps_of(model, groups, images).items():
        for channel in range(groups[name].width):
            expected = 0.0
            for x, part in maps:
                x = x[:, list(part.positions[channel])].flatten(1)
                responses = x.norm(dim=1) if response == "l2" else x.abs().amax(dim=1)
                expected -= slow_entropy(responses.tolist(), labels.tolist(), 7)
            assert scores[name][channel].item() == pytest.approx(expected, abs=1e-12)


def test_a_map_that_two_layers_read_counts_once():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.one, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 3, padding=1)

        def forward(self, x):
            x = torch.relu(self.first(x))
            return (self.one(x) + self.other(x)).mean((2, 3))

    model, (images, labels) = prepared(Fork()), pictures(40)
    responses = torch.relu(model.first(images)).flatten(2).norm(dim=2).T.tolist()
    expected = [-slow_entropy(channel, labels.tolist(), 7) for channel in responses]
    assert ranked(model, [(images, labels)], top=7).scores["first"].tolist() == pytest.approx(expected)


def test_equal_shares_give_equal_entropies_whichever_classes_have_them():
    # The order in which a row is added up depends on its length, here 5 and 4 classes.
    responses = [[0.0, 1.0, *[0.0] * 4, *[1.0] * 6]]
    labels = [[0, last, *[0] * 9, 1] for last in (4, 3)]
    assert top_of(responses, labels[0], 3, []) == top_of(responses, labels[1], 3, [])


def test_the_coupled_group_of_a_residual_network_is_read_as_two_maps():
    model = prepared(Residual())
    assert len(maps_of(model, find_groups(model, IMAGE), pictures(2)[0])["stem"]) == 2


class Detectors(nn.Module):
    """Channels that are handed through: the image's own."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, channels, 1, bias=False), nn.Conv2d(channels, 2, 1)
        self.first.weight.data = torch.eye(channels)[:, :, None, None]

    def forward(self, x):
        return self.second(torch.relu(self.first(x))).mean((2, 3))


def detected(responses, labels, **options):
    """Return the ranking of channels that respond like this, `[channels][images]`."""
    images = torch.tensor(responses).T[:, :, None, None].expand(-1, -1, 2, 2)
    model = Detectors(len(responses))
    return ranked(model, batches(images, torch.tensor(labels), 3), find_groups(model, images), **options)


def test_a_channel_that_answers_to_one_class_is_kept_and_one_that_answers_to_all_is_not():
    labels = [0, 1, 2] * 4
    of_class = [[5.0 + image if label == kind else 1.0 for image, label in enumerate(labels)] for kind in (0, 2)]
    everything = [5.0 + image for image in range(12)]
    ranking = detected([everything, *of_class], labels, top=3)
    assert ranking.scores["first"].tolist() == pytest.approx([-math.log2(3), 0, 0])
    assert ranking.orders["first"].tolist() == [1, 2, 0]


def test_a_channel_that_hardly_ever_answers_is_not_taken_for_a_detector_of_the_images_that_it_is_silent_on():
    labels = [0, 1, 2, 3] * 5
    detector = [1.0 if label == 3 else 0.0 for label in labels]
    rare = [2.0] + [0.0] * 19
    ranking = detected([rare, detector], labels, top=5)
    assert ranking.orders["first"].tolist() == [1, 0]
    shares = [1 / 5 + 4 / 5 * 4 / 19, *[4 / 5 * 5 / 19] * 3]
    assert ranking.scores["first"][0].item() == pytest.approx(sum(share * math.log2(share) for share in shares))


def test_a_dead_channel_is_last_also_where_classes_are_not_balanced():
    labels = [0] * 9 + [1, 2, 3]
    even = [0.0] * 8 + [4.0, 3.0, 2.0, 5.0]  # all classes once: more entropy than all the images have
    ranking = detected([[0.0] * 12, even, list(map(float, range(1, 13)))], labels, top=4)
    assert ranking.scores["first"].tolist() == [-3, -2, -2]
    assert ranking.orders["first"].tolist() == [1, 2, 0]  # the two others are equal: the lower index first


@pytest.mark.parametrize("seen", [11, 12])
def test_a_top_of_more_than_half_of_the_images_seen_is_half_of_them(seen):
    model, (images, labels) = prepared(chain()), pictures(20)
    data = batches(images, labels, 20)
    half, more = ranked(model, data, images=seen, top=seen // 2), ranked(model, data, images=seen, top=999)
    assert torch.equal(half.scores["0"], more.scores["0"])
    assert not torch.equal(half.scores["0"], ranked(model, data, images=seen, top=seen // 2 - 1).scores["0"])


def test_a_twentieth_of_the_images_counts_if_nothing_else_is_asked_for():
    model, (images, labels) = prepared(chain()), pictures(69)
    unasked = CRITERIA.build("dlrfc").rank(model, find_groups(model, IMAGE), [(images, labels)]).scores["0"]
    assert torch.equal(unasked, ranked(model, [(images, labels)], top=3).scores["0"])
    assert not torch.equal(unasked, ranked(model, [(images, labels)], top=4).scores["0"])


def test_at_least_one_image_counts():
    model, (images, labels) = prepared(chain()), pictures(12)
    assert ranked(model, [(images, labels)], share=0.05).scores["0"].tolist() == [0.0] * 6


def test_a_share_is_taken_exactly():
    responses, labels = [float(image) for image in range(100)], [0, *[1, 2, 3] * 33]
    ranking = detected([responses, responses], labels, share=0.29)  # 100 · 0.29 is less than 29 in floats
    expected = slow_entropy(responses, labels, 29)
    assert ranking.scores["first"].tolist() == pytest.approx([-expected] * 2, abs=1e-12)


def test_the_responses_are_what_they_are_asked_to_be():
    model, data = prepared(chain()), [pictures(40)]
    assert not torch.equal(
        ranked(model, data, top=5).scores["0"], ranked(model, data, top=5, response="max").scores["0"]
    )


def test_looks_at_the_first_images_only():
    model, (images, labels) = prepared(Residual()), pictures(20)
    few = ranked(model, batches(images, labels, 4), images=9).scores
    first = ranked(model, [(images[:9], labels[:9])]).scores
    assert all(torch.equal(few[name], first[name]) for name in few)


def test_no_more_is_kept_than_the_largest_responses():
    top = _Top(6, 3, torch.device("cpu"))
    for _ in range(20):
        top.add(torch.rand(3, 8, dtype=torch.float64), torch.randint(5, (8,)))
    assert top.values.shape == top.labels.shape == (3, 6)


def test_images_of_one_class_are_an_error():
    model, (images, labels) = prepared(chain()), pictures(12)
    with pytest.raises(RankingError, match="'dlrfc': expected images of at least two classes, got only class 3"):
        ranked(model, [(images, torch.full_like(labels, 3))])


def test_bad_options_are_errors():
    for option in ("images", "top"):
        with pytest.raises(OptionError, match=f"criterion 'dlrfc', {option}: expected at least 1, got 0"):
            CRITERIA.build("dlrfc", **{option: 0})
    for share in (0, 0.51, float("nan")):
        with pytest.raises(OptionError, match=f"criterion 'dlrfc', share: expected more than 0 to 0.5, got {share}"):
            CRITERIA.build("dlrfc", share=share)
    with pytest.raises(OptionError, match="criterion 'dlrfc', response: expected l2 or max, got 'mean'"):
        CRITERIA.build("dlrfc", response="mean")


def test_a_head_that_does_not_run_in_eval_mode_scores_zero():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.head = chain(), nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1))

        def forward(self, x):
            return self.main(x) + (self.head(x).mean((2, 3)) if self.training else 0)

    assert ranked(prepared(Auxiliary()), [pictures()]).scores["head.0"].tolist() == [0.0] * 4


@pytest.mark.parametrize("where", [0, 19])
def test_a_nan_is_an_error_that_names_group_and_channel(where):
    model, (images, labels) = prepared(chain()), pictures(20)
    images[where] = torch.nan
    with pytest.raises(RankingError, match=r"criterion 'dlrfc', group '0': channels \[0, 1, 2, 3, 4, 5\] have no"):
        ranked(model, batches(images, labels, 6), top=3)
